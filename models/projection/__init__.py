"""Measures of how far a two-dimensional map of many-dimensional points may be believed."""
