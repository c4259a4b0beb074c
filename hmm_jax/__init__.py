"""Hybrid model merging in JAX: see hmm_jax/types.py for the contracts."""
