"""What is kept of a task vector: functions (delta, key) -> a tree of bools, for one model.

Magnitudes are compared in float32. Of equal ones either all are kept or none (our choice: which
of them go would hang on their order).
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, InputError, Key, PyTree

# What is thinned out by itself: all of a model at once, or each tensor.
SCOPES = {'model': lambda keep, delta: keep(delta), 'tensor': jax.tree.map}


def everything(delta: PyTree, key: Key) -> PyTree:
  """Keeps a task vector as it is."""
  del key
  return jax.tree.map(lambda x: jnp.full(x.shape, True), delta)


def largest(density: float, scope: str) -> Callable:
  """Returns the sparsifier that keeps the round(density n) largest of n entries.

  Args:
    density: from 0, which keeps nothing, to 1.
    scope: whose n entries, one of `SCOPES`.

  Raises:
    InputError: a density or a scope that cannot be.
  """
  _check_share('density', density)
  if scope not in SCOPES:
    raise InputError(f'got scope={scope}; expected one of {", ".join(SCOPES)}')

  def keep(delta):
    least = rank(delta, round(density * tree.size(delta)))
    return jax.tree.map(lambda x: _magnitude(x) >= least, delta)

  return lambda delta, key: SCOPES[scope](keep, delta)


def middle(smallest: float, largest: float) -> Callable:
  """Returns the sparsifier that drops a share of the smallest and of the largest entries.

  Of each tensor's n they are round(smallest n) and round(largest n), less those that are as large
  as one that stays.

  Raises:
    InputError: shares that cannot be, or more than 1 together.
  """
  _check_share('smallest', smallest)
  _check_share('largest', largest)
  if smallest + largest > 1:
    raise InputError(f'got largest={largest} with smallest={smallest}; expected at most 1 together')

  def keep(x):
    first, last = round(largest * x.size) + 1, x.size - round(smallest * x.size)
    if first > last:
      return jnp.full(x.shape, False)
    magnitude = _magnitude(x)
    return (rank(x, last) <= magnitude) & (magnitude <= rank(x, first))

  return lambda delta, key: jax.tree.map(keep, delta)


def random_share(density: float) -> Callable:
  """Returns the sparsifier that keeps each entry by a chance of `density`.

  Raises:
    InputError: a density that is not from 0 to 1.
  """
  _check_share('density', density)

  def sparsify(delta, key):
    leaves, structure = jax.tree.flatten(delta)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [
        jax.random.bernoulli(key, density, x.shape) for key, x in zip(keys, leaves)])

  return sparsify


def rank(delta: PyTree, place: int) -> Array:
  """Finds the place-th largest magnitude of all leaves: the bits of its float32, an int32.

  Place 0 is above all, and those beyond the last are 0. Magnitudes are in the order of their
  bits, which are settled from the highest to the lowest by counting: nothing is sorted.
  """

  def settle(i, bits):
    candidate = bits | (1 << (30 - i))
    counts = [(_magnitude(x) >= candidate).sum(dtype=jnp.int32) for x in jax.tree.leaves(delta)]
    return jnp.where(sum(counts) >= place, candidate, bits)

  return lax.fori_loop(0, 31, settle, jnp.int32(0))


def _magnitude(x):
  return lax.bitcast_convert_type(jnp.abs(x).astype(jnp.float32), jnp.int32)


def _check_share(name, value):
  if not 0 <= value <= 1:
    raise InputError(f'got {name}={value}; expected from 0 to 1')
