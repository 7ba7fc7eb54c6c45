"""Producing a forecast step by step: streaming states, sampled paths."""
