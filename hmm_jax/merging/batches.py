"""What merges learn from data, a batch at a time."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, Examples, PyTree


def mean_over_batches(measure: Callable, examples: Examples, rows: Array) -> PyTree:
  """Averages measure(x) over batches; every batch counts the same.

  Args:
    measure: (x of a batch) -> a tree.
    examples: flat data.
    rows: [S, B], the rows of each batch.
  """

  of = lambda batch: measure(jax.tree.map(lambda x: jnp.take(x, batch, axis=0), examples.x))
  zeros = tree.zeros(jax.eval_shape(of, rows[0]))
  total, _ = lax.scan(lambda total, batch: (tree.add(total, of(batch)), None), zeros, rows)
  return tree.scale(1 / len(rows), total)
