"""Averages of models, uniform or weighted.

The factories return (stacked, base, key) -> params. Leaves are computed in at least float32 and
returned in their own dtype.
"""

from collections.abc import Sequence
import math

from hmm_jax import tree
from hmm_jax.merging.task_vectors import model_weights
from hmm_jax.registry import REQUIRED, Operator, Setting
from hmm_jax.types import InputError, Merge


def uniform() -> Merge:
  """Returns the mean of the models.

  Reference: Wortsman et al. Model soups: averaging weights of multiple fine-tuned models
    improves accuracy without increasing inference time. ICML 2022. arXiv:2203.05482.
  """

  def merge(stacked, base, key):
    del base, key
    return tree.mean(stacked)

  return merge


def weighted(*, weights: Sequence[float]) -> Merge:
  """Returns sum_k w_k theta_k.

  Args:
    weights: [K]; they must sum to 1, see `normalized`.

  Raises:
    InputError: they don't sum to 1, or they are not one finite number for each model.
  """
  if not abs(sum(weights) - 1) <= 1e-6:
    raise InputError(f'got weights={list(weights)}, which sum to {sum(weights):g}; expected '
                     'a sum of 1')

  def merge(stacked, base, key):
    del base, key
    return tree.mix(model_weights(weights, stacked), stacked)

  return merge


def normalized(weights: Sequence[float]) -> list[float]:
  """Divides weights by their sum.

  Raises:
    InputError: the sum is 0 or not finite.
  """
  total = sum(weights)
  if not math.isfinite(total) or not total:
    raise InputError(f'got weights={list(weights)}, which sum to {total:g}; expected a finite sum '
                     'other than 0')
  return [w / total for w in weights]


UNIFORM = Operator(
    'uniform', uniform, ('shared init',), summary='the mean of the models',
    paper='Wortsman et al. ICML 2022. arXiv:2203.05482')
WEIGHTED = Operator(
    'weighted', weighted, ('shared init',),
    {'weights': Setting(REQUIRED, 'one number for each model; they sum to 1')},
    summary='the weighted mean, by weights that sum to 1')
