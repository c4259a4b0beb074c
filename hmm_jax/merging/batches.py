"""Means of measurements over batches."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, Examples, PyTree


def mean_over_batches(measure: Callable, examples: Examples, rows: Array) -> PyTree:
  """Averages measure(x) over batches of equal weight.

  Args:
    measure: (x of a batch) -> a tree.
    examples: flat data.
    rows: [S, B], indices of each batch.
  """

  of = lambda batch: measure(jax.tree.map(lambda x: jnp.take(x, batch, axis=0), examples.x))
  zeros = tree.zeros(jax.eval_shape(of, rows[0]))
  total, _ = lax.scan(lambda total, batch: (tree.add(total, of(batch)), None), zeros, rows)
  return tree.scale(1 / len(rows), total)
