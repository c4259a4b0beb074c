"""Hybrid model merging in JAX: see hmm_jax/types.py for the contracts."""

from hmm_jax import tree, types

__all__ = ['tree', 'types']
__version__ = '0.1.0'
