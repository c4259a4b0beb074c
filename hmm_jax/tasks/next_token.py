"""Next tokens: at each position of a sequence, the token that follows; outputs are [B, T, C]."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmm_jax.data import normalize
from hmm_jax.registry import TaskKind
from hmm_jax.tasks import classification
from hmm_jax.types import Array, Dataset, InputError, Task

NAMES = ('perplexity', 'token_accuracy')  # of the metrics, the main one first


def loss(logits: Array, y: Array) -> Array:
  """Returns the mean cross-entropy over the positions of each sequence, [B]."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(-1)


def scores(logits: Array, y: Array) -> dict[str, Array]:
  """Returns the share of right tokens and the cross-entropy of each sequence, [B] both."""
  return {'token_accuracy': (logits.argmax(-1) == y).mean(-1, dtype=jnp.float32),
          'nats': loss(logits, y)}


def metrics(means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the perplexity, exp of the mean cross-entropy, and the share of right tokens."""
  with np.errstate(over='ignore'):
    return {'perplexity': np.exp(means['nats']), 'token_accuracy': means['token_accuracy']}


def prepare(dataset: Dataset) -> Dataset:
  """Returns the set with the token that follows each one, [D, T] int32.

  Of inputs [D, T] with the one token that follows them, [D], targets are made by a shift.

  Raises:
    InputError: inputs or targets are no tokens.
  """
  x, y = dataset.x_train, dataset.y_train
  tokens = isinstance(x, np.ndarray) and x.ndim == 2 and normalize.is_tokens(x)
  if not tokens or y.dtype.kind not in 'iu' or y.shape not in (x.shape, x.shape[:1]):
    raise classification.unsuitable(dataset, 'next_token', 'tokens [D, T] and those that follow')
  if not dataset.names and dataset.classes == 0:
    dataset = dataset._replace(classes=1 + max(int(part.max(initial=0)) for part in (
        x, y, dataset.x_test, dataset.y_test)))
  if min(part.min(initial=0) for part in (x, y, dataset.x_test, dataset.y_test)) < 0:
    raise InputError(f'got task=next_token with dataset={dataset.name}, which has tokens below 0; '
                     'expected numbers from 0')
  return dataset._replace(
      y_train=_following(x, y), y_test=_following(dataset.x_test, dataset.y_test))


def _following(x, y):
  return (y if y.ndim == 2 else np.concatenate([x[:, 1:], y[:, None]], axis=1)).astype(np.int32)


NEXT_TOKEN = Task(
    'next_token', loss, scores, metrics, NAMES, jax.nn.softmax,
    classification.mix, classification.draw,
    entropy=lambda logits: classification.entropy(logits).mean(-1),
    smooth=lambda logits: classification.smooth(logits).mean(-1))


def make(about: Mapping[str, Any], loss: Callable | None) -> Task:
  del about
  return NEXT_TOKEN._replace(loss=loss or NEXT_TOKEN.loss)


KIND = TaskKind('next_token', make, prepare, metrics=NAMES, positions=True,
                summary='the token that follows, at each position of a sequence')
