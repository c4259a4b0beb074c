"""Multilayer perceptrons, including softmax regression."""

import flax.linen as nn
import jax.numpy as jnp

from hmm_jax.models import layers
from hmm_jax.models.classifier import classifier
from hmm_jax.models.symmetry import chain
from hmm_jax.registry import Inputs, Network, Setting
from hmm_jax.types import Array, InputError, Model, PyTree


class Trunk(nn.Module):
  """Flattened inputs through hidden layers with ReLU."""

  hidden: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Array, *, train: bool, mask: Array | None) -> Array:
    x = layers.flatten(x)
    for features in self.hidden:
      x = nn.relu(layers.dense(x, features))
    return x


def mlp(
    hidden: tuple[int, ...] = (200,),
    *,
    classes: int,
    input_shape: PyTree,
    dtype: jnp.dtype = jnp.float32,
) -> Model:
  """Returns a perceptron on flattened inputs; hidden=() is softmax regression."""
  if any(features < 1 for features in hidden):
    raise InputError(f'got hidden={tuple(hidden)}; expected widths of at least 1')
  return classifier(Trunk(tuple(hidden)), classes=classes, input_shape=input_shape, dtype=dtype,
                    wiring=chain)


def build_mlp(inputs: Inputs, settings) -> Model:
  return mlp(settings.hidden, classes=inputs.classes, input_shape=inputs.shape, dtype=inputs.dtype)


NETWORK = Network(
    'mlp', build_mlp,
    {'hidden': Setting((128,), 'widths of the hidden layers; () is a linear model', at_least=1,
                       at_most=10**6)},
    summary='a multilayer perceptron')
