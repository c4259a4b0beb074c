"""The tiny federation and networks of the laws, with what other tasks than classification learn."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax.check import toys
from hmm_jax.models import classifier
from hmm_jax.tasks import TASKS
from hmm_jax.types import Examples, Federation, Model

LENGTH = 5  # tokens of a sequence
RATES = {'regression': {'local.lr': 0.05}, 'next_token': {'local.lr': 1.0}}  # to learn in time
SCALE = {'mean': [1.0, -2.0, 30.0], 'std': [0.5, 2.0, 10.0]}  # of the targets


def federation(made: Federation, task: str) -> Federation:
  """Returns the federation of classes [D] with what another task learns, or one of that task."""
  if task == 'classification' or made.examples.y.ndim > 1:
    return made
  server = made.server
  return made._replace(
      examples=LEARNED[task](made.examples),
      server=server and server._replace(examples=LEARNED[task](server.examples)))


def network(model: Model, task: str) -> Model:
  """Returns a network for the task: with other outputs, or, for next tokens, a bigram model."""
  if task == 'next_token':
    model = bigram()
  return model._replace(task=TASKS[task].make({'targets': SCALE}, None))


class Embedding(nn.Module):
  """A vector for each token: [B, T] -> [B, T, F]."""

  @nn.compact
  def __call__(self, x, *, train, mask):
    return nn.Embed(toys.CLASSES, 6)(x)


@cache
def bigram() -> Model:
  """Returns a network that predicts each token from the one before."""
  return classifier.classifier(Embedding(), classes=toys.CLASSES,
                               input_shape=jax.ShapeDtypeStruct((LENGTH,), jnp.int32))


def _targets(examples):
  """Three linear functions of the inputs, in the units of SCALE."""
  weights = jnp.asarray(np.random.default_rng(5).normal(size=(4, 3)), jnp.float32)
  std, mean = (jnp.float32(SCALE[key])[None] for key in ('std', 'mean'))
  return examples._replace(y=mean + std * (examples.x @ weights))


def _labels(examples):
  """The signs of the first inputs."""
  return examples._replace(y=(examples.x[:, :toys.CLASSES] > 0).astype(jnp.uint8))


def _tokens(examples):
  """Sequences that count up from a class, but for a token in twenty."""
  rng = np.random.default_rng(6)
  tokens = (np.asarray(examples.y)[:, None] + np.arange(LENGTH + 1)[None]) % toys.CLASSES
  other = rng.integers(toys.CLASSES, size=tokens.shape)
  tokens = np.where(rng.random(tokens.shape) < 0.05, other, tokens).astype(np.int32)
  return Examples(jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:]))


LEARNED = {'regression': _targets, 'multilabel': _labels, 'next_token': _tokens}
