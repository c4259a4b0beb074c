"""Graphs of who may talk to whom, as NumPy arrays."""
