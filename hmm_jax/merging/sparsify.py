"""Sparsification of task vectors, by limits that are first found for one model as a whole.

Magnitudes are compared in float32. Of equal ones either all are kept or none (our choice: which
ones are dropped would depend on their order).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, InputError, PyTree

# Entries that are ranked together: all of a model, or those of each tensor.
SCOPES = {'model': lambda keep, delta: keep(delta), 'tensor': jax.tree.map}


class Sparsifier(NamedTuple):
  """A rule in two steps, so that the masks of all models are never in memory at once.

  limits: (delta) -> a tree like delta, with the limits of each leaf for `keep`.
  keep:   (leaf, its limits, key) -> bools of its shape.
  """

  limits: Callable
  keep: Callable


def everything() -> Sparsifier:
  """Returns the sparsifier that keeps a task vector as it is."""
  return Sparsifier(_no_limits, lambda x, limits, key: jnp.full(x.shape, True))


def largest(density: float, scope: str) -> Sparsifier:
  """Returns the sparsifier that keeps the round(density n) largest of n entries.

  Args:
    density: from 0, which keeps nothing, to 1.
    scope: which n entries are ranked together, one of `SCOPES`.

  Raises:
    InputError: an unknown scope, or a density out of range.
  """
  _check_share('density', density)
  if scope not in SCOPES:
    raise InputError(f'got scope={scope}; expected one of {", ".join(SCOPES)}')

  def limits(delta):
    least = rank(delta, round(density * tree.size(delta)))
    return jax.tree.map(lambda x: least, delta)

  return Sparsifier(lambda delta: SCOPES[scope](limits, delta),
                    lambda x, least, key: _magnitude(x) >= least)


def middle(smallest: float, largest: float) -> Sparsifier:
  """Returns the sparsifier that drops a share of the smallest and of the largest entries.

  Of each tensor's n entries, round(smallest n) and round(largest n) are dropped, except for those
  as large as one that is kept.

  Raises:
    InputError: shares out of range, or more than 1 together.
  """
  _check_share('smallest', smallest)
  _check_share('largest', largest)
  if smallest + largest > 1:
    raise InputError(f'got largest={largest} with smallest={smallest}; expected at most 1 together')

  def limits(x):
    first, last = round(largest * x.size) + 1, x.size - round(smallest * x.size)
    return (rank(x, last), rank(x, first)) if first <= last else (rank(x, 0), 0)

  def keep(x, limits, key):
    del key
    least, most = limits
    return (least <= _magnitude(x)) & (_magnitude(x) <= most)

  return Sparsifier(lambda delta: jax.tree.map(limits, delta), keep)


def random_share(density: float) -> Sparsifier:
  """Returns the sparsifier that keeps each entry with probability `density`.

  Raises:
    InputError: a density that is not from 0 to 1.
  """
  _check_share('density', density)
  keep = lambda x, limits, key: jax.random.bernoulli(key, float(density), x.shape)
  return Sparsifier(_no_limits, keep)


def rank(delta: PyTree, place: int) -> Array:
  """Returns the place-th largest magnitude of all leaves: the bits of its float32, an int32.

  Place 0 is above all magnitudes, and places beyond the last are 0. Magnitudes are ordered as
  their bits, which are found from the highest to the lowest by counting: nothing is sorted.
  """
  # As one vector: counting in every leaf is slow to compile.
  magnitudes = jnp.concatenate([_magnitude(x).reshape(-1) for x in jax.tree.leaves(delta)])

  def settle(i, bits):
    candidate = bits | (1 << (30 - i))
    enough = (magnitudes >= candidate).sum(dtype=jnp.int32) >= place
    return jnp.where(enough, candidate, bits)

  return lax.fori_loop(0, 31, settle, jnp.int32(0))


def _no_limits(delta):
  return jax.tree.map(lambda x: (), delta)


def _magnitude(x):
  return lax.bitcast_convert_type(jnp.abs(x).astype(jnp.float32), jnp.int32)


def _check_share(name, value):
  if not 0 <= value <= 1:
    raise InputError(f'got {name}={value}; expected a number from 0 to 1')
