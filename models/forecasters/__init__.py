"""Forecasters: each a configuration and a module."""
