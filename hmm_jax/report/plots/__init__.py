"""Figures of a run, each made by a function that returns it."""
