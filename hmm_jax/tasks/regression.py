"""Regression: each example has one number or several; outputs are [B, C], one for each.

Targets are standardized for training, so that learning rates don't depend on their unit: outputs
and the loss are in standard deviations. Metrics and predictions are in the unit of the targets.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmm_jax.registry import Setting, TaskKind
from hmm_jax.tasks.classification import unsuitable
from hmm_jax.types import Array, Dataset, InputError, Task

NAMES = ('rmse', 'mae', 'r2')  # of the metrics, the main one first
_FLAT = 1e-9  # a variance of targets, in units of that in training, that is rounding only


def regression(mean: np.ndarray, std: np.ndarray, loss: Callable | None = None) -> Task:
  """Returns the task for targets with this mean and standard deviation, [C] both.

  Args:
    mean, std: [C], which standardize the targets.
    loss: (outputs, standardized targets) -> [B]; None for the mean squared error.
  """
  loss = loss or squared
  center, scale = mean[None], std[None]
  standard = lambda y: (y - center) / scale

  def scores(outputs, y):
    residual = (outputs - standard(y)) * scale
    return {'absolute': jnp.abs(residual), 'squared': jnp.square(residual),
            'y': standard(y), 'y_squared': jnp.square(standard(y))}

  def metrics(means):
    variance = np.square(std) * (means['y_squared'] - np.square(means['y']))
    varies = variance > _FLAT * np.square(std)
    unexplained = np.divide(means['squared'], variance, where=varies, out=np.ones_like(variance))
    return {'rmse': np.sqrt(means['squared']).mean(-1), 'mae': means['absolute'].mean(-1),
            'r2': 1 - unexplained.mean(-1)}

  return Task(
      'regression', lambda outputs, y: loss(outputs, standard(y)), scores, metrics,
      NAMES, predict=lambda outputs: outputs * scale + center,
      mix=lambda outputs, weights: jnp.tensordot(weights, outputs, 1),
      # The squared error is the likelihood of a normal distribution of variance 1/2.
      draw=lambda outputs, key: center + scale * (
          outputs + jax.random.normal(key, outputs.shape) / np.float32(np.sqrt(2))),
      entropy=None, smooth=None)


def squared(outputs: Array, y: Array) -> Array:
  """Returns the mean squared error over the targets of each example, [B]."""
  return jnp.square(outputs - y).mean(-1)


def absolute(outputs: Array, y: Array) -> Array:
  """Returns the mean absolute error over the targets of each example, [B]."""
  return jnp.abs(outputs - y).mean(-1)


def huber(outputs: Array, y: Array) -> Array:
  """Returns half the squared error up to one standard deviation, and linear beyond, [B]."""
  return optax.losses.huber_loss(outputs, y).mean(-1)


def prepare(dataset: Dataset) -> Dataset:
  """Returns the set with targets [D, C] float32.

  Raises:
    InputError: targets that are no numbers, or not finite.
  """
  y_train, y_test = (_targets(dataset, split) for split in ('y_train', 'y_test'))
  if not (classes := y_train.shape[1]):
    raise unsuitable(dataset, 'regression', 'at least one target')
  names = dataset.names if len(dataset.names) == classes else (
      'target',) if classes == 1 else tuple(f'target {c}' for c in range(classes))
  return dataset._replace(
      classes=classes, names=names, titles=(), y_train=y_train, y_test=y_test)


def _targets(dataset, split):
  y = getattr(dataset, split)
  if y.ndim not in (1, 2) or y.dtype.kind not in 'iuf':
    raise unsuitable(dataset, 'regression', 'numbers, one or several for each example')
  with np.errstate(over='ignore'):
    y = (y if y.ndim == 2 else y[:, None]).astype(np.float32)
  if len(bad := np.flatnonzero(~np.isfinite(y).all(axis=1))):
    raise InputError(f'got dataset={dataset.name} with the target {y[bad[0]].tolist()} in '
                     f'{split}[{bad[0]}]; expected finite numbers')
  return y


def make(about: Mapping[str, Any], loss: Callable | None) -> Task:
  scale = about['targets']
  return regression(*(np.array(scale[key], np.float32) for key in ('mean', 'std')), loss)


KIND = TaskKind(
    'regression', make, prepare, groups='quantiles', metrics=NAMES,
    losses={'squared': squared, 'absolute': absolute, 'huber': huber},
    settings={
        'scale': Setting('standard', 'targets are standardized for training, or taken as they are',
                         choices=('standard', 'none')),
        'quantiles': Setting(10, 'groups of equal size, by the first target, that partitions by '
                             'class deal', at_least=1, at_most=1000)},
    summary='one number or several for each example')
