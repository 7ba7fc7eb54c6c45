"""Baselines: what a forecaster has to beat, each forecasting the same windows as the forecasters.

``statistical`` holds seasonal naive and AutoETS, ``additive`` Prophet, and
``run`` calls any of them by name. Nothing is imported here, so that a process of a pool loads what it computes alone.
"""
