"""Conflict-aware merging: what a task vector does to the other tasks' features is cut off.

Task k has features X_k, what enters a layer when its model sees its exemplars. In a linear layer
T_i, the task vector of another, changes their outputs by X_k T_i.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax.merging import regmean, task_vectors
from hmm_jax.merging.delta import deltas, wide
from hmm_jax.registry import Operator, Setting
from hmm_jax.types import Array, InputError, PyTree

_LEAST = 1e-5  # Of the largest eigenvalue: below, rounding decides which directions these are.
_APART = 1e-2  # Directions of two tasks that differ by less, in radians, count as one.


def cat(*, directions: int = 3, scale: float = 1.0, trade_off: float = 1.0) -> Callable:
  """Returns CAT merging, as (model, stacked, base, examples, rows, key) -> params.

  Args:
    directions: c, how many each task forbids the others, in each tensor.
    scale: alpha, of the sum of what is left.
    trade_off: lambda, how much the harm that a cut does to a task vector on its own task weighs
      against what it spares another (our default: as much).

  Raises:
    InputError: a setting that cannot be.

  Reference: Sun, Li, Geng, Li. CAT Merging: A Training-Free Approach for Resolving Conflicts in
    Model Merging. ICML 2025. arXiv:2505.06977.
  """
  if directions < 1:
    raise InputError(f'got directions={directions}; expected at least 1')
  task_vectors.check_finite('scale', scale)
  task_vectors.check_finite('trade_off', trade_off)

  def apply(model, stacked, base, examples, rows, key):
    del key
    return merge(stacked['params'], base['params'], regmean.grams(model, stacked, examples, rows),
                 directions=directions, scale=scale, trade_off=trade_off)

  return apply


def merge(stacked: PyTree, base: PyTree, grams: dict, *, directions: int, scale: float,
          trade_off: float) -> PyTree:
  """Adds the trimmed task vectors to the start.

  Args:
    stacked: parameters [K, ...].
    base: theta_0, parameters.
    grams: {module path: X_k^T X_k, [K, F, F]}.
    directions, scale, trade_off: as above.
  """

  def leaf(path, delta, start):
    gram = regmean.gram_of(grams, path)
    if gram is None:
      trimmed = mask(delta, directions)
    else:
      trimmed = project(delta.reshape(len(delta), -1, delta.shape[-1]), gram, directions, trade_off)
    change = trimmed.sum(axis=0).reshape(start.shape)
    return (wide(start) + scale * change).astype(start.dtype)

  return jax.tree.map_with_path(leaf, deltas(stacked, base), base)


def project(delta: Array, grams: Array, directions: int, trade_off: float) -> Array:
  """Projects the directions out of kernels' task vectors that the other tasks forbid.

  Task k forbids the top eigenvectors, those of eigenvalues above 0, of

    sum_{i != k} T_i^T (X_k^T X_k - lambda X_i^T X_i) T_i

  All that is forbidden to T_i goes at once, whatever the tasks' order; the authors project out
  one task after the other, which for two tasks is the same.

  Args:
    delta: T, [K, F, G].
    grams: X_k^T X_k, [K, F, F].
    directions: how many at most.
    trade_off: lambda.
  """
  tasks = jnp.arange(len(delta))
  own = _energy(delta, grams)

  def forbid(k):
    harm = _energy(delta, jnp.broadcast_to(grams[k], grams.shape)) - trade_off * own
    values, vectors = jnp.linalg.eigh(_others(tasks, k, harm).sum(axis=0))
    counts = values > _LEAST * jnp.abs(values).max()
    return jnp.where(counts[None], vectors, 0)[:, -directions:]

  forbidden = lax.map(forbid, tasks)  # [K, G, c]

  def trim(i):
    spanning = jnp.concatenate(_others(tasks, i, forbidden), axis=1)
    basis, lengths, _ = jnp.linalg.svd(spanning, full_matrices=False)
    basis = jnp.where(lengths[None] > _APART, basis, 0)
    along = jnp.matmul(delta[i], basis, precision='highest')
    return delta[i] - jnp.matmul(along, basis.T, precision='highest')

  return lax.map(trim, tasks)


def mask(delta: Array, directions: int) -> Array:
  """Sets the entries of task vectors to 0 that the other tasks forbid: [K, ...].

  Task k forbids those in which the others' squares sum to most. So it is in the paper for what
  is added to features. A scale multiplies features that are normalized, whose squares are 1 on
  average, and is treated alike (our choice), as is all that is no linear layer's kernel.
  """
  tasks = jnp.arange(len(delta))
  flat = delta.reshape(len(delta), -1)

  def forbid(k):
    harm = _others(tasks, k, jnp.square(flat)).sum(axis=0)
    _, top = lax.top_k(harm, min(directions, len(harm)))
    return jnp.zeros(len(harm), bool).at[top].set(True)

  forbidden = lax.map(forbid, tasks)
  trim = lambda i: jnp.where(_others(tasks, i, forbidden).any(axis=0), 0, flat[i])
  return lax.map(trim, tasks).reshape(delta.shape)


def _energy(delta, grams):
  """Returns T_i^T G_i T_i: [K, G, G]."""
  seen = jnp.matmul(grams, delta, precision='highest')
  return jnp.matmul(delta.swapaxes(1, 2), seen, precision='highest')


def _others(tasks, k, values):
  """Sets the k-th of the values [K, ...] to 0."""
  return jnp.where((tasks != k).reshape(-1, *[1] * (values.ndim - 1)), values, 0)


OPERATOR = Operator(
    'cat', cat, ('base', 'network', 'data'),
    {'directions': Setting(3, 'directions that each task forbids the others, in each tensor', at_least=1),
     'scale': Setting(1.0, 'of the sum of the trimmed task vectors'),
     'trade_off': Setting(1.0, 'weight of what a cut costs the own task')},
    summary="task vectors less what would disturb the other tasks' features",
    paper='Sun et al. ICML 2025. arXiv:2505.06977')
