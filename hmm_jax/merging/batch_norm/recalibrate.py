"""Normalization statistics for a merged model, estimated anew on data.

The mean of several models' running statistics is not what the merged network sees.
"""

from collections.abc import Callable

import jax

from hmm_jax.merging.batches import mean_over_batches
from hmm_jax.types import Array, Examples, Model, PyTree


def recalibrate(model: Model, variables: PyTree, examples: Examples, rows: Array) -> PyTree:
  """Replaces a model's normalization statistics by their mean over S batches.

  Every batch counts the same, as in PyTorch's cumulative average. A model without
  statistics comes back as it is.

  Args:
    model: the network.
    variables: of one model; its parameters stay.
    examples: flat data.
    rows: [S, B], the rows of each batch.

  Reference: Izmailov, Podoprikhin, Garipov, Vetrov, Wilson. Averaging Weights Leads to
    Wider Optima and Better Generalization. UAI 2018. arXiv:1803.05407 (for averaged
    weights).
  """
  if not variables.keys() - {'params'}:
    return variables
  measured = mean_over_batches(lambda x: model.statistics(variables, x), examples, rows)
  return {**variables, **measured}


def calibration(model: Model, source: Callable, *, batches: int, batch: int) -> Callable:
  """Returns (variables, federation) -> variables, recalibrated on rows of the federation.

  The rows are drawn with replacement by a key of their own, the same in every call
  (our choice: evaluations stay comparable).

  Args:
    model: the network.
    source: (federation) -> (rows [N], how many of them are valid, from the front).
    batches: S, how many.
    batch: B, rows in each.
  """

  def calibrate(variables, federation):
    rows, count = source(federation)
    draws = jax.random.randint(jax.random.key(0), (batches, batch), 0, count)
    return recalibrate(model, variables, federation.examples, rows[draws])

  return calibrate
