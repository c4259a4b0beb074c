"""Multi-label classification: any of C labels may apply; outputs are logits [B, C]."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmm_jax.registry import TaskKind
from hmm_jax.tasks.classification import unsuitable
from hmm_jax.types import Array, Dataset, Task

# Of the metrics, the main one first.
NAMES = ('f1_micro', 'f1_macro', 'label_accuracy', 'exact_match')


def loss(logits: Array, y: Array) -> Array:
  """Returns the mean binary cross-entropy over the labels of each example, [B]."""
  return optax.sigmoid_binary_cross_entropy(logits, y.astype(logits.dtype)).mean(-1)


def scores(logits: Array, y: Array) -> dict[str, Array]:
  """Tells which labels are predicted, by a probability above one half, and rightly so: [B, C]."""
  said, true = logits > 0, y > 0
  marks = {'right': said == true, 'hit': said & true, 'said': said, 'true': true}
  return {name: x.astype(jnp.float32) for name, x in marks.items()} | {
      'exact': (said == true).all(-1).astype(jnp.float32)}


def metrics(means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the shares of right labels and of examples with all labels right, and F1 scores.

  F1 is 2 hits / (predicted + true): of all labels together (micro), or the mean over labels
  (macro); it is 0 for a label that is neither predicted nor true, as in scikit-learn.
  """
  hits, both = 2 * means['hit'], means['said'] + means['true']
  ratio = lambda a, b: np.divide(a, b, out=np.zeros_like(a), where=b > 0)
  return {'f1_micro': ratio(hits.sum(-1), both.sum(-1)), 'f1_macro': ratio(hits, both).mean(-1),
          'label_accuracy': means['right'].mean(-1), 'exact_match': means['exact']}


def mix(logits: Array, weights: Array) -> Array:
  """Returns the logits of a weighted mean of M models' probabilities: [M, B, C] -> [B, C]."""
  p = jnp.tensordot(weights, jax.nn.sigmoid(logits), 1)
  return jax.scipy.special.logit(jnp.clip(p, 1e-7, 1 - 1e-7))


def draw(logits: Array, key: Array) -> Array:
  """Draws the labels of each example by their probabilities, independently."""
  return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(jnp.uint8)


def entropy(logits: Array) -> Array:
  """Returns the mean entropy over the labels of each prediction: [B, C] -> [B]."""
  return optax.sigmoid_binary_cross_entropy(logits, jax.nn.sigmoid(logits)).mean(-1)


def prepare(dataset: Dataset) -> Dataset:
  """Returns the set with labels that are 0 or 1, [D, C] uint8.

  Raises:
    InputError: labels are anything else.
  """
  for y in (dataset.y_train, dataset.y_test):
    if y.ndim != 2 or y.dtype.kind not in 'iubf' or not np.isin(y, (0, 1)).all():
      raise unsuitable(dataset, 'multilabel', '0 or 1 for each example and label, [D, C]')
  classes = dataset.y_train.shape[1]
  names = dataset.names if len(dataset.names) == classes else ()
  return dataset._replace(
      classes=classes, names=names, titles=(), y_train=dataset.y_train.astype(np.uint8),
      y_test=dataset.y_test.astype(np.uint8))


MULTILABEL = Task(
    'multilabel', loss, scores, metrics, NAMES,
    predict=jax.nn.sigmoid, mix=mix, draw=draw, entropy=entropy, smooth=None)


def make(about: Mapping[str, Any], loss: Callable | None) -> Task:
  del about
  return MULTILABEL._replace(loss=loss or MULTILABEL.loss)


KIND = TaskKind('multilabel', make, prepare, metrics=NAMES,
                summary='any number of C labels for each example, 0 or 1 each')
