"""Where several models begin."""

import jax
import jax.numpy as jnp

from hmm_jax.types import Key, Model, PyTree


def initial_models(model: Model, key: Key, count: int) -> PyTree:
  """Initializes M models, each by itself: [M, ...].

  The first is model.init(key), from which methods with one model begin: with M = 1 such
  runs can be compared.
  """
  keys = jnp.concatenate([key[None], jax.random.split(key, count)[1:]])
  return jax.vmap(model.init)(keys)
