"""Wiring: which tasks run, in which order and when; one file a flow, no maths and no file formats."""
