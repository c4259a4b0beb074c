"""Alignment of the hidden units of several models by permutation."""
