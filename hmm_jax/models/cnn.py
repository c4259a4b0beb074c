"""Small convolutional networks of federated-learning papers."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from hmm_jax.models import layers
from hmm_jax.models.classifier import check_choice, check_images, classifier
from hmm_jax.models.pooling import max_pool
from hmm_jax.models.symmetry import chain
from hmm_jax.registry import Inputs, Network, Setting
from hmm_jax.types import Array, Model, PyTree


class Size(NamedTuple):
  """Convolutions with ReLU, some followed by a 2x2 max-pool, then dense layers."""

  convs: tuple[int, ...]  # output channels
  pools: tuple[bool, ...]  # whether a max-pool follows
  window: int
  padding: int
  hidden: tuple[int, ...]
  least: int  # pixels per side of the smallest image
  dropout: tuple[float, float] = (0, 0)  # before and after the hidden layers


SIZES = {
    # FedMR's LeNet: 62,006 parameters on 32x32x3 with 10 classes.
    'lenet': Size((6, 16), (True, True), 5, 0, (120, 84), least=16),
    # PFLlib's CNN: 582,026 parameters on 28x28x1 and 878,538 on 32x32x3, 10 classes.
    'pfllib': Size((32, 64), (True, True), 5, 0, (512,), least=16),
    # pfl-research's CIFAR-10 network: 1,626,442 parameters.
    'pfl': Size((32, 64), (False, True), 3, 0, (128,), least=6, dropout=(0.25, 0.5)),
    # 545,098 parameters on 32x32x3 with 10 classes.
    'small': Size((32, 64), (True, True), 3, 1, (128,), least=4),
}


class Trunk(nn.Module):
  """The network of a `Size` up to its head."""

  size: Size

  @nn.compact
  def __call__(self, x: Array, *, train: bool, mask: Array | None) -> Array:
    size = self.size
    for features, pool in zip(size.convs, size.pools, strict=True):
      x = nn.relu(layers.conv(x, features, window=size.window, padding=size.padding))
      x = max_pool(x) if pool else x
    x = layers.Dropout(size.dropout[0])(layers.flatten(x), train=train)
    for features in size.hidden:
      x = nn.relu(layers.dense(x, features))
    return layers.Dropout(size.dropout[1])(x, train=train)


def cnn(
    size: str = 'lenet',
    *,
    classes: int,
    input_shape: PyTree,
    dtype: jnp.dtype = jnp.float32,
) -> Model:
  """Returns one of the networks in `SIZES`."""
  check_choice('size', size, SIZES)
  check_images(f'size={size}', input_shape, SIZES[size].least)
  return classifier(Trunk(SIZES[size]), classes=classes, input_shape=input_shape, dtype=dtype,
                    wiring=chain)


def build_cnn(inputs: Inputs, settings) -> Model:
  return cnn(settings.size, classes=inputs.classes, input_shape=inputs.shape, dtype=inputs.dtype)


NETWORK = Network(
    'cnn', build_cnn,
    {'size': Setting('lenet', 'architecture', choices=SIZES)},
    summary='small convolutional networks of federated-learning papers')
