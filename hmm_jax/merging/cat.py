"""Conflict-aware merging (CAT): task vectors are trimmed where they disturb other tasks' features.

Task k has features X_k, the inputs of a layer when its model runs on its exemplars. In a linear
layer the task vector T_i of another task changes their outputs by X_k T_i.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax.merging import regmean, task_vectors
from hmm_jax.merging.delta import deltas, wide
from hmm_jax.registry import Operator, Setting
from hmm_jax.types import Array, InputError, PyTree

_LEAST = 1e-5  # Times the largest eigenvalue: directions of less are rounding errors.
_APART = 1e-2  # Directions of two tasks that differ by less, in radians, count as one.


def cat(*, directions: int = 3, scale: float = 1.0, trade_off: float = 1.0) -> Callable:
  """Returns CAT merging, as (model, stacked, base, examples, rows, key) -> params.

  Args:
    directions: c, number of directions per tensor that each task forbids the others.
    scale: alpha, scaling factor of the sum of the trimmed task vectors.
    trade_off: lambda, weight of the harm that trimming does to a task vector on its own task,
      relative to the conflict that it removes from another (our default: 1).

  Raises:
    InputError: a setting is out of range.

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
  """Adds the trimmed task vectors to the base.

  Args:
    stacked: parameters [K, ...].
    base: theta_0, parameters.
    grams: {module path: X_k^T X_k, [K, F, F]}.
    directions, scale, trade_off: as above.
  """

  def leaf(path, delta, origin):
    gram = regmean.gram_of(grams, path)
    if gram is None:
      trimmed = mask(delta, directions)
    else:
      trimmed = project(delta.reshape(len(delta), -1, delta.shape[-1]), gram, directions, trade_off)
    change = trimmed.sum(axis=0).reshape(origin.shape)
    return (wide(origin) + scale * change).astype(origin.dtype)

  return jax.tree.map_with_path(leaf, deltas(stacked, base), base)


def project(delta: Array, grams: Array, directions: int, trade_off: float) -> Array:
  """Projects out of kernels' task vectors the directions that other tasks forbid.

  Task k forbids the top eigenvectors, of positive eigenvalues, of

    sum_{i != k} T_i^T (X_k^T X_k - lambda X_i^T X_i) T_i

  All directions forbidden to T_i are removed at once, independently of the tasks' order; the
  authors project for one task after the other, which is the same for two tasks.

  Args:
    delta: T, [K, F, G].
    grams: X_k^T X_k, [K, F, F].
    directions: maximal number per task.
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
    basis, singular, _ = jnp.linalg.svd(spanning, full_matrices=False)
    basis = jnp.where(singular[None] > _APART, basis, 0)
    along = jnp.matmul(delta[i], basis, precision='highest')
    return delta[i] - jnp.matmul(along, basis.T, precision='highest')

  return lax.map(trim, tasks)


def mask(delta: Array, directions: int) -> Array:
  """Sets the entries of task vectors that other tasks forbid to 0: [K, ...].

  Task k forbids the entries with the largest sum of the others' squares, as in the paper for
  parameters that are added to features. A scale multiplies normalized features, whose squares
  are 1 on average, and is treated alike (our choice), as is all but kernels of linear layers.
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
  """Returns the values [K, ...] with the k-th set to 0."""
  return jnp.where((tasks != k).reshape(-1, *[1] * (values.ndim - 1)), values, 0)


OPERATOR = Operator(
    'cat', cat, ('base', 'network', 'data'),
    {'directions': Setting(
         3, 'directions per tensor that each task forbids the others', at_least=1),
     'scale': Setting(1.0, 'scaling factor of the sum of the trimmed task vectors'),
     'trade_off': Setting(1.0, 'weight of the harm that trimming does to the own task')},
    summary="task vectors, trimmed where they disturb other tasks' features",
    paper='Sun et al. ICML 2025. arXiv:2505.06977')
