"""Merges saved models: python -m hmm_jax.merge."""
