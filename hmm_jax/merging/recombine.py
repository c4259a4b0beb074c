"""Recombination: tensors, layers or segments are shuffled among several models.

A unit is a set of leaves that are shuffled as one: `unit` is a tree of integers from 0 in the
structure of `variables`, the unit of each leaf.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.types import Array, InputError, Key, Model, PyTree


def recombine(key: Key, pool: PyTree, unit: PyTree, *, returned: Array, chance: Array) -> PyTree:
  """Shuffles or averages each unit over the slots of a pool; the pool's mean stays.

  Args:
    key: of all draws.
    pool: [m, ...].
    unit: of each leaf.
    returned: [m] bool, the slots that take part; the others stay as they are.
    chance: [units], probability of a shuffle by a uniform permutation; else it is averaged.
  """
  order_key, coin_key = jax.random.split(key)
  keys = jax.random.split(order_key, len(chance))
  sources = jax.vmap(permutation, (0, None))(keys, returned)
  shuffled = jax.random.bernoulli(coin_key, chance)
  row = returned / jnp.maximum(returned.sum(), 1)

  def leaf(u, x):
    takes_part = returned.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(shuffled[u], x[sources[u]], jnp.where(takes_part, tree.mix(row, x)[None], x))

  return jax.tree.map(leaf, unit, pool)


def permutation(key: Key, returned: Array) -> Array:
  """Returns a uniform permutation of the slots that returned: [m], each one's source."""
  slots = jnp.arange(len(returned))
  draws = jax.random.uniform(key, slots.shape)
  in_order = jnp.argsort(jnp.where(returned, slots, len(slots) + slots))
  at_random = jnp.argsort(jnp.where(returned, draws, 1 + slots))
  return slots.at[in_order].set(at_random)


def tensors(model: Model, variables: PyTree) -> PyTree:
  """Returns the units that are single tensors: a different number for each leaf."""
  return segments(len(jax.tree.leaves(variables)))(model, variables)


def layers(model: Model, variables: PyTree) -> PyTree:
  """Returns the units that are modules: one number for their weight, bias and statistics."""
  return jax.tree.map(model.modules().index, model.groups(variables))


def segments(count: int) -> Callable:
  """Returns (model, variables) -> `count` units of consecutive tensors, in the network's order.

  One segment is the whole model. The tensors of a module are consecutive, its statistics
  first (our choice: JAX orders them by name).

  Raises:
    InputError: fewer than 1, or more than there are tensors.
  """

  def units(model, variables):
    modules = jax.tree.leaves(layers(model, variables))
    if not 1 <= count <= len(modules):
      raise InputError(f'got segments={count}; expected from 1 to {len(modules)}, the '
                       "number of the model's tensors")
    position = np.argsort(np.argsort(modules, kind='stable'))
    return jax.tree.unflatten(jax.tree.structure(variables),
                              (position * count // len(modules)).tolist())

  return units
