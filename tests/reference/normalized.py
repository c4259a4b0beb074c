"""Three models of softmax regression on normalized inputs, and merges of them on examples."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from reference import toys

EXAMPLES = toys.federation().examples
INDICES = jnp.array([[0, 4, 9, 11], [3, 20, 30, 5], [7, 8, 1, 17]])


def base():
  """Returns the variables that the models start from, everything drawn."""
  noise = lambda x: np.random.default_rng(x.size).uniform(0.5, 1.5, x.shape).astype(np.float32)
  return jax.tree.map(lambda x: x + noise(x), toys.start(toys.norm))


def models():
  """Returns models that went different ways from the base."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: jnp.asarray(
      x[None] + rng.uniform(-0.4, 0.4, (3, *x.shape)), jnp.float32), base())


def labels():
  return EXAMPLES.y[INDICES.ravel()]


@cache
def predict():
  """Returns (params) -> logits of the examples, on batches that normalize themselves."""
  variables = base()
  return toys.jit(lambda params: jnp.concatenate([toys.norm().apply(
      {**variables, 'params': params}, EXAMPLES.x[own], train=True)[0] for own in INDICES]))


def merge(operator):
  """Returns (stacked, indices) -> params by an operator that needs a network."""
  run = toys.jit(operator, static_argnums=0)
  return lambda stacked, indices=INDICES: run(
      toys.norm(), stacked, base(), EXAMPLES, indices, toys.key(0))
