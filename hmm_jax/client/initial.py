"""Initialization of several models."""

import jax
import jax.numpy as jnp

from hmm_jax.types import Key, Model, PyTree


def initial_models(model: Model, key: Key, count: int) -> PyTree:
  """Initializes M models independently: [M, ...].

  The first is model.init(key), the initial model of methods with one model, so that runs
  with M = 1 are comparable to these.
  """
  keys = jnp.concatenate([key[None], jax.random.split(key, count)[1:]])
  return jax.vmap(model.init)(keys)
