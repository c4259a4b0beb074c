"""Recombination: the parts of several models change places among them.

A unit is what moves as one. Here it is a tree of whole numbers from 0 in the structure of
`variables`: the unit of each leaf.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.types import Array, InputError, Key, Model, PyTree


def recombine(key: Key, pool: PyTree, unit: PyTree, *, returned: Array, chance: Array) -> PyTree:
  """Shuffles each unit over the slots of a pool, or averages it; the pool's mean stays.

  Args:
    key: of all draws.
    pool: [m, ...].
    unit: of each leaf.
    returned: [m] bool, the slots that take part; the others stay as they are.
    chance: [units], that a unit is shuffled by a uniform permutation of its own.
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
  """Permutes the slots that returned, uniformly: [m], from which slot each one takes."""
  slots = jnp.arange(len(returned))
  draws = jax.random.uniform(key, slots.shape)
  in_order = jnp.argsort(jnp.where(returned, slots, len(slots) + slots))
  at_random = jnp.argsort(jnp.where(returned, draws, 1 + slots))
  return slots.at[in_order].set(at_random)


def tensors(model: Model, variables: PyTree) -> PyTree:
  """Makes a unit of every tensor."""
  return segments(len(jax.tree.leaves(variables)))(model, variables)


def layers(model: Model, variables: PyTree) -> PyTree:
  """Makes a unit of every module: its weight, bias and statistics."""
  return jax.tree.map(model.modules().index, model.groups(variables))


def segments(count: int) -> Callable:
  """Cuts the tensors, in the network's order, into so many units of consecutive ones.

  One segment is the whole model, which changes slots. The tensors of a module stand
  together, its statistics first (our choice: JAX keeps them by name).

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
