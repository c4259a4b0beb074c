"""Perceptrons that differ in the order of their hidden units only, and merges of them."""

import jax
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax import tree
from hmm_jax.merging.alignment.permutation import permute

EXAMPLES = toys.federation().examples
INDICES = jnp.array([[0, 4, 9, 11], [3, 20, 30, 5], [7, 8, 1, 17]])


def models():
  """Returns a perceptron, and a stack of it and of it with its hidden units in another order."""
  model, first = toys.perceptron(), toys.start(toys.perceptron)
  [group] = model.symmetry().size
  other = permute(model.symmetry(), first, {group: jnp.array([3, 0, 4, 1, 2])})
  return first, tree.stack([first, other])


def merge(operator, indices=INDICES):
  """Returns (stacked) -> params by an operator that needs a network."""
  run = toys.jit(operator, static_argnums=0)
  return lambda stacked: run(toys.perceptron(), stacked, None, EXAMPLES, indices, toys.key(0))


def noisy(first):
  """Returns a stack of a model and of one around it."""
  noise = lambda x: x + 0.5 * jnp.asarray(
      np.random.default_rng(x.size).normal(size=x.shape), jnp.float32)
  return tree.stack([first, jax.tree.map(noise, first)])
