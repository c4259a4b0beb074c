"""Merging of task vectors: sparsified, elected by sign, and added to their shared base.

With delta_k = theta_k - theta_0, every merge here is

  theta_0 + scale reduce_k(w_k kept_k delta_k), over the entries that are elected

and is defined by three functions:

  sparsify: a `Sparsifier`, which selects the entries kept of a task vector.
  elect:    (votes [K, ...]) -> [K, ...] bool, of each leaf: `any_sign` or `majority_sign`.
  reduce:   (votes [K, ...], elected [K, ...], weights [K, 1, ...]) -> [...]: `total`, `mean` or
            `mean_of_elected`.

Leaves are computed in at least float32 and returned in the dtype of the base. A factory's
`weights` are [K] finite numbers, 1 each if None; they are not normalized.
"""

from collections.abc import Callable, Sequence

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging import sparsify as kept
from hmm_jax.merging.delta import delta, wide
from hmm_jax.registry import Setting
from hmm_jax.types import Array, InputError, Key, Merge, PyTree

_LARGEST = float(jnp.finfo(jnp.float32).max)


def merge(stacked: PyTree, base: PyTree, key: Key, *, weights: Array, sparsify: kept.Sparsifier,
          elect: Callable, reduce: Callable, scale: float) -> PyTree:
  """Adds the merged task vectors of K models to the base.

  Args:
    stacked: leaves [K, ...].
    base: theta_0, leaves [...].
    key: of random sparsification; each model has its own.
    weights: [K]; a negative one changes the sign of its votes.
    sparsify, elect, reduce: as above.
    scale: scaling factor of the merged task vector.
  """
  # One model at a time: finding limits takes memory.
  limits = lax.map(lambda one: sparsify.limits(delta(one, base)), stacked)
  leaves, structure = jax.tree.flatten(base)

  @jax.jit  # Per leaf: a shape is compiled once, and faster than all leaves together.
  def leaf(origin, x, limits, number):
    keys = jax.random.split(jax.random.fold_in(key, number), len(x))
    shares = weights.reshape(-1, *[1] * origin.ndim)
    learned = wide(x) - wide(origin)[None]
    votes = shares * jnp.where(jax.vmap(sparsify.keep)(learned, limits, keys), learned, 0)
    change = reduce(votes, elect(votes), jnp.abs(shares))
    return (wide(origin) + scale * change).astype(origin.dtype)

  return jax.tree.map(leaf, base, stacked, limits, structure.unflatten(range(len(leaves))))


def any_sign(votes: Array) -> Array:
  """Returns True for every entry."""
  return jnp.full(votes.shape, True)


def majority_sign(votes: Array) -> Array:
  """Returns which entries have the sign of their sum over the models.

  If the sum is 0 no entry is elected (our choice: no model's sign has priority).
  """
  return votes * jnp.sign(_add(votes))[None] > 0


def total(votes: Array, elected: Array, weights: Array) -> Array:
  """Returns the sum of the elected entries."""
  del weights
  return _add(jnp.where(elected, votes, 0))


def mean(votes: Array, elected: Array, weights: Array) -> Array:
  """Returns the sum of the elected entries over the weight of all models."""
  return total(votes, elected, weights) / weights.sum(axis=0)


def mean_of_elected(votes: Array, elected: Array, weights: Array) -> Array:
  """Returns the sum of the elected entries over the weight of their models; 0 if none is."""
  weight = _add(jnp.where(elected, weights, 0))
  return total(votes, elected, weights) / jnp.where(weight > 0, weight, 1)


def model_weights(weights: Sequence[float] | None, stacked: PyTree) -> Array:
  """Returns the weights of K models, 1 each if None: [K].

  Raises:
    InputError: as `check_weights`.
  """
  count = tree.count(stacked)
  weights = [1] * count if weights is None else weights
  check_weights(weights, count)
  return jnp.asarray(weights, jnp.float32)


def check_weights(weights: Sequence[float], count: int) -> None:
  """Raises InputError unless there is one finite number for each model."""
  if len(weights) != count or not all(abs(w) <= _LARGEST for w in weights):
    raise InputError(f'got weights={list(weights)}; expected {count} finite numbers, one per model')


def check_finite(name: str, value: float) -> None:
  """Raises InputError unless a setting is finite as a float32."""
  if not abs(value) <= _LARGEST:
    raise InputError(f'got {name}={value}; expected a finite number')


def merge_by(sparsify: kept.Sparsifier, elect: Callable, reduce: Callable, scale: float,
             weights: Sequence[float] | None) -> Merge:
  """Returns `merge` as an operator.

  Args:
    sparsify, elect, reduce, scale: as in `merge`.
    weights: one finite number for each model; 1 each if None.

  Raises:
    InputError: a scale that is not finite.
  """
  check_finite('scale', scale)

  def apply(stacked, base, key):
    return merge(stacked, base, key, weights=model_weights(weights, stacked), sparsify=sparsify,
                 elect=elect, reduce=reduce, scale=scale)

  return apply


def _add(stacked):
  """Sums over the models one by one: XLA would write the operand of a reduction to memory."""
  return sum(stacked[1:], stacked[0])


WEIGHTS = Setting(None, 'weight of each model, a finite number; 1 each by default')
SCALE = Setting(1.0, 'scaling factor of the merged task vector')
