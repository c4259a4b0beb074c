"""Classification: each example has one of C classes, and outputs are logits [B, C]."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmm_jax.data import numbering
from hmm_jax.registry import TaskKind
from hmm_jax.types import Array, Dataset, InputError, Task

NAMES = ('accuracy',)  # of the metrics, the main one first


def scores(logits: Array, y: Array) -> dict[str, Array]:
  """Tells which examples are classified rightly: {'accuracy': [B]}."""
  return {'accuracy': (logits.argmax(-1) == y).astype(jnp.float32)}


def mix(logits: Array, weights: Array) -> Array:
  """Returns the log of a weighted mean of M models' probabilities: [M, ..., C] -> [..., C]."""
  log_weights = jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny))
  log_weights = log_weights.reshape(-1, *[1] * (logits.ndim - 1))
  return jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_weights, axis=0)


def draw(logits: Array, key: Array) -> Array:
  """Draws a class by each example's probabilities."""
  return jax.random.categorical(key, logits)


def entropy(logits: Array) -> Array:
  """Returns the entropy of each prediction: [B, C] -> [B]."""
  log_p = jax.nn.log_softmax(logits)
  return -(jnp.exp(log_p) * log_p).sum(axis=-1)


def smooth(logits: Array) -> Array:
  """Returns the cross-entropy with evenly spread labels, [B]."""
  return -jax.nn.log_softmax(logits).mean(-1)


CLASSIFICATION = Task(
    'classification', optax.softmax_cross_entropy_with_integer_labels, scores,
    metrics=lambda means: {'accuracy': means['accuracy']}, names=NAMES,
    predict=jax.nn.softmax, mix=mix, draw=draw, entropy=entropy, smooth=smooth)


def prepare(dataset: Dataset) -> Dataset:
  """Numbers the classes of labels that are read from a file: integers or strings.

  Raises:
    InputError: labels are of another kind.
  """
  if dataset.classes:
    if dataset.y_train.ndim != 1 or dataset.y_train.dtype.kind not in 'iu':
      raise unsuitable(dataset, 'classification', 'a class of each example')
    return dataset
  train, test = (_labels(y, dataset) for y in (dataset.y_train, dataset.y_test))
  if len(test) and (train.dtype.kind == 'U') != (test.dtype.kind == 'U'):
    raise InputError(f'got dataset={dataset.name} with labels of {train.dtype} in training and '
                     f'{test.dtype} in test; expected integers in both, or strings in both')
  y_train, y_test, classes, names = numbering.numbered(train, test)
  return dataset._replace(y_train=y_train, y_test=y_test, classes=classes, names=names)


def unsuitable(dataset: Dataset, task: str, wanted: str) -> InputError:
  """Makes the error of a data set whose y are not what a task learns."""
  y = dataset.y_train
  kind = 'strings' if y.dtype.kind in 'OSU' else y.dtype
  return InputError(f'got task={task} with dataset={dataset.name}, whose labels are {kind} '
                    f'{y.shape}; expected {wanted}')


def _labels(y, dataset):
  if y.ndim == 2 and y.shape[1] == 1:
    y = y[:, 0]
  if y.ndim != 1 or y.dtype.kind not in 'iubU':
    raise unsuitable(dataset, 'classification', 'integers or strings, one for each example; '
                     'task=regression learns other numbers')
  y = y.astype(np.int64) if y.dtype.kind == 'b' else y
  # -1 would often mean that there is no label, and not a class.
  if y.dtype.kind == 'i' and y.min(initial=0) < 0:
    raise InputError(f'got dataset={dataset.name} with labels from {y.min()} to {y.max()}; '
                     'expected classes from 0')
  return y


def make(about: Mapping[str, Any], loss: Callable | None) -> Task:
  del about
  return CLASSIFICATION._replace(loss=loss or CLASSIFICATION.loss)


KIND = TaskKind('classification', make, prepare, groups='classes', metrics=NAMES,
                summary='one of C classes for each example')
