"""Recalibration of a merged model's normalization statistics on data.

The mean of several models' running statistics is not that of the merged network's activations.
"""

from collections.abc import Callable

import jax
from jax import lax

from hmm_jax.merging.batch_norm.pool import pool
from hmm_jax.merging.batches import mean_over_batches, take
from hmm_jax.types import Array, Examples, Model, PyTree


def recalibrate(model: Model, variables: PyTree, examples: Examples, rows: Array) -> PyTree:
  """Replaces a model's normalization statistics by their mean over S batches.

  Batches are weighted by their examples: equally, as in PyTorch's cumulative average, where they
  are full. A model without statistics is returned unchanged.

  Args:
    model: the network.
    variables: of one model; its parameters stay.
    examples: flat data.
    rows: [S, B], indices of each batch.

  Reference: Izmailov, Podoprikhin, Garipov, Vetrov, Wilson. Averaging Weights Leads to
    Wider Optima and Better Generalization. UAI 2018. arXiv:1803.05407 (for averaged
    weights).
  """
  if not variables.keys() - {'params'}:
    return variables
  measure = lambda batch: model.statistics(variables, batch.x, mask=batch.mask)
  return {**variables, **mean_over_batches(measure, examples, rows)}


def pooled(model: Model, variables: PyTree, examples: Examples, rows: Array) -> PyTree:
  """Replaces a model's normalization statistics by those of the examples of all batches together.

  Variances have the spread between batches in them, which their mean lacks, so that the first
  normalization does not depend on the batches. Later ones do, as each batch normalizes their
  inputs by itself. Arguments are those of `recalibrate`.
  """
  if not variables.keys() - {'params'}:
    return variables

  def measure(own):
    batch = take(examples, own)
    return model.statistics(variables, batch.x, mask=batch.mask)

  counts = (rows >= 0).sum(axis=1)
  return {**variables, **pool(counts / counts.sum(), lax.map(measure, rows))}


def calibration(model: Model, source: Callable, *, batches: int, batch: int) -> Callable:
  """Returns (variables, federation) -> variables, recalibrated on examples.

  The examples are drawn with replacement by a fixed key, the same in every call (our
  choice: evaluations stay comparable).

  Args:
    model: the network.
    source: (federation) -> (indices [N], how many are valid, from the front).
    batches: S, number of batches.
    batch: B, examples per batch.
  """

  def calibrate(variables, federation):
    if not variables.keys() - {'params'}:  # It has no need of examples.
      return variables
    rows, count = source(federation)
    draws = jax.random.randint(jax.random.key(0), (batches, batch), 0, count)
    return recalibrate(model, variables, federation.examples, rows[draws])

  return calibrate
