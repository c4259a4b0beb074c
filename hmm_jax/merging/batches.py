"""Batches of examples by their indices, of which -1 is padding, and means over them."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.merging.search import minibatches
from hmm_jax.types import Array, Batch, Examples, Key, PyTree


def epoch(key: Key, rows: Array, *, batch: int) -> Array:
  """Returns batches [S, B] of at most `batch` indices, with each of `rows` [N] exactly once.

  The sizes of batches differ by 1 at most, as one example by itself has no BatchNorm statistics.
  """
  count = -(-len(rows) // batch)
  ends = len(rows) * np.arange(count + 1) // count
  place = ends[:-1, None] + np.arange(-(-len(rows) // count))
  order = minibatches(key, rows, batch=len(rows), steps=1)[0]
  return jnp.where(place < ends[1:, None], order[np.minimum(place, len(rows) - 1)], -1)


def take(examples: Examples, own: Array) -> Batch:
  """Returns the examples at the indices `own` [B]."""
  at = lambda leaf: jnp.take(leaf, jnp.maximum(own, 0), axis=0)
  x, y = jax.tree.map(at, tuple(examples))
  return Batch(x, y, own >= 0)


def masked_mean(values: Array, mask: Array) -> Array:
  """Averages the values [B] of the examples that are no padding; 0 if there are none."""
  return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


def row_weights(mask: Array, rows: int) -> Array:
  """Returns equal weights [R, 1] of the rows of `Model.linear`, 0 for padding, which sum to 1."""
  weights = jnp.repeat(mask, rows // len(mask))[:, None]
  return weights / jnp.maximum(weights.sum(), 1)


def mean_over_batches(measure: Callable, examples: Examples, rows: Array) -> PyTree:
  """Averages measure(batch) over batches, weighted by their examples.

  Args:
    measure: (Batch) -> a tree of means over its examples.
    examples: flat data.
    rows: [S, B], indices of each batch.
  """
  zeros = tree.zeros(jax.eval_shape(lambda own: measure(take(examples, own)), rows[0]))

  def add(total, own):
    batch = take(examples, own)
    return tree.add(total, tree.scale(batch.mask.mean(), measure(batch))), None

  total, _ = lax.scan(add, zeros, rows)
  return tree.scale(1 / (rows >= 0).mean(axis=1).sum(), total)
