"""Permutations that bring the hidden units of several models into one order."""
