"""Averages of models, by weights that are given or that follow from the angles between them.

What the factories return takes (stacked, base, key) and gives params. Leaves are computed in
float32 at least and come back in their own dtype.
"""

from collections.abc import Callable, Sequence
import math

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging import task_vectors
from hmm_jax.merging.delta import deltas, wide
from hmm_jax.types import InputError

# Beyond this cosine, that of the tools, a straight line is nowhere more than 1/8000 inside the arc.
_PARALLEL = 0.9995


def uniform() -> Callable:
  """Returns the mean of the models.

  Reference: Wortsman et al. Model soups: averaging weights of multiple fine-tuned models
    improves accuracy without increasing inference time. ICML 2022. arXiv:2203.05482.
  """

  def merge(stacked, base, key):
    del base, key
    count = len(jax.tree.leaves(stacked)[0])
    return tree.mix(jnp.full(count, 1 / count), stacked)

  return merge


def weighted(*, weights: Sequence[float]) -> Callable:
  """Returns sum_k w_k theta_k.

  Args:
    weights: [K], as they are to count: nothing makes them sum to 1, but see `normalised`.

  Raises:
    InputError: they don't sum to 1, or they are not one finite number for each model.
  """
  if not abs(sum(weights) - 1) <= 1e-6:
    raise InputError(f'got weights={list(weights)}, which sum to {sum(weights):g}; expected '
                     'a sum of 1')

  def merge(stacked, base, key):
    del base, key
    return tree.mix(task_vectors.model_weights(weights, stacked), stacked)

  return merge


def normalised(weights: Sequence[float]) -> list[float]:
  """Divides weights by their sum.

  Raises:
    InputError: the sum is 0 or not finite.
  """
  whole = sum(weights)
  if not math.isfinite(whole) or not whole:
    raise InputError(f'got weights={list(weights)}, which sum to {whole:g}; expected a finite sum '
                     'other than 0')
  return [w / whole for w in weights]


def slerp(*, t: float = 0.5) -> Callable:
  """Returns the interpolation of two models, tensor by tensor, along an arc.

  As in the popular tools, each tensor is one vector, and its arc is a straight line where the
  two are nearly parallel (or opposite) or one of them is 0.

  Args:
    t: from 0, the first model, to 1, the second.

  Raises:
    InputError: a t outside, or other than 2 models.

  Reference: Shoemake. Animating Rotation with Quaternion Curves. SIGGRAPH 1985.
  """
  if not 0 <= t <= 1:
    raise InputError(f'got t={t}; expected from 0 to 1')
  shares = jnp.array([1 - t, t])

  def merge(stacked, base, key):
    del base, key
    count = len(jax.tree.leaves(stacked)[0])
    if count != 2:
      raise InputError(f'got {count} models; expected 2 to interpolate between')
    return jax.tree.map(jax.jit(lambda x: tree.mix(_arc(tree.gram(x), shares), x)), stacked)

  return merge


def _arc(gram, shares):
  """Returns the weights of two tensors at these shares of the arc between them: [2]."""
  lengths = jnp.sqrt(gram[0, 0]) * jnp.sqrt(gram[1, 1])
  straight = jnp.abs(gram[0, 1]) >= _PARALLEL * lengths
  angle = jnp.arccos(gram[0, 1] / jnp.where(straight, jnp.inf, lengths))
  return jnp.where(straight, shares, jnp.sin(shares * angle) / jnp.sin(angle))


def model_stock() -> Callable:
  """Returns Model Stock: each tensor's mean, drawn to the start the more the models disagree.

  With c the mean cosine between two task vectors of a tensor, it is

    t mean_k(theta_k) + (1 - t) theta_0,   t = K c / ((K - 1) c + 1)

  For more than two models the paper has one angle; the mean over pairs is our choice. So is
  that below 0 it counts as 0, where the start comes back, and that a single model, which has no
  pair, has c = 1 and comes back itself.

  Reference: Jang, Yun, Han. Model Stock: All we need is just a few fine-tuned models. ECCV 2024.
    arXiv:2403.19522.
  """

  def merge(stacked, base, key):
    del key

    @jax.jit
    def leaf(start, x):
      count, learnt = len(x), deltas(x, start)
      cosine = jnp.maximum(_cosines(learnt).mean(), 0) if count > 1 else 1.0
      t = count * cosine / ((count - 1) * cosine + 1)
      return (wide(start) + t * learnt.mean(axis=0)).astype(start.dtype)

    return jax.tree.map(leaf, base, stacked)

  return merge


def _cosines(x):
  """Returns the cosine of each pair of K tensors, 0 if one of them is 0: [K (K - 1) / 2]."""
  gram = tree.gram(x)
  length = jnp.sqrt(jnp.diag(gram))
  a, b = jnp.triu_indices(len(x), 1)
  lengths = length[a] * length[b]
  return gram[a, b] / jnp.where(lengths > 0, lengths, 1)
