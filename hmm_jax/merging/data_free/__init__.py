"""Inversion of BatchNorm statistics into inputs, and distillation on them."""
