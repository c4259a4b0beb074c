"""Averages of models, with equal or given weights.

What the factories return takes (stacked, base, key) and gives params. Leaves are computed in
float32 at least and come back in their own dtype.
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
    weights: [K], as they are to count: nothing makes them sum to 1, but see `normalized`.

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
  whole = sum(weights)
  if not math.isfinite(whole) or not whole:
    raise InputError(f'got weights={list(weights)}, which sum to {whole:g}; expected a finite sum '
                     'other than 0')
  return [w / whole for w in weights]


UNIFORM = Operator(
    'uniform', uniform, ('shared init',), summary='the mean of the models',
    paper='Wortsman et al. ICML 2022. arXiv:2203.05482')
WEIGHTED = Operator(
    'weighted', weighted, ('shared init',),
    {'weights': Setting(REQUIRED, 'one number for each model; they sum to 1')},
    summary='a mean by weights that sum to 1')
