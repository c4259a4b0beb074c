"""Residual networks for small images: a 3x3 stem and no pooling before the end."""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from hmm_jax.models import layers
from hmm_jax.models.classifier import check_choice, check_images, classifier
from hmm_jax.registry import Inputs, Network, Setting
from hmm_jax.types import Array, Model, PyTree


class Size(NamedTuple):
  """Widths and block counts of the stages; every stage but the first halves the image."""

  widths: tuple[int, ...]
  blocks: tuple[int, ...]


SIZES = {
    # FedMerge's narrow network: 83,852 parameters with 100 classes.
    '9-narrow': Size(widths=(8, 16, 32, 64), blocks=(1, 1, 1, 1)),
    # 11,173,962 parameters with 10 classes.
    '18': Size(widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2)),
    # 272,474 parameters with 10 classes: projections where He et al. pad with zeros.
    '20': Size(widths=(16, 32, 64), blocks=(3, 3, 3)),
}


def _layer(x, features, *, window, strides=1, norm, train, mask):
  """Convolves and normalizes; without a normalization the convolution has a bias."""
  x = layers.conv(
      x, features, window=window, strides=strides, padding=window // 2, bias=norm == 'none',
      kernel_init=layers.kaiming)
  return layers.normalize(x, norm, train=train, mask=mask)


class Block(nn.Module):
  """Two 3x3 convolutions plus a shortcut: a 1x1 projection where the shape changes."""

  features: int
  strides: int
  norm: str

  @nn.compact
  def __call__(self, x: Array, *, train: bool, mask: Array | None) -> Array:
    layer = functools.partial(
        _layer, features=self.features, norm=self.norm, train=train, mask=mask)
    y = nn.relu(layer(x, window=3, strides=self.strides))
    y = layer(y, window=3)
    if x.shape != y.shape:
      x = layer(x, window=1, strides=self.strides)
    return nn.relu(x + y)


class Trunk(nn.Module):
  """The stem, the stages of a `Size` and global average pooling."""

  size: Size
  norm: str

  @nn.compact
  def __call__(self, x: Array, *, train: bool, mask: Array | None) -> Array:
    widths, blocks = self.size
    x = nn.relu(_layer(x, widths[0], window=3, norm=self.norm, train=train, mask=mask))
    for stage, (features, count) in enumerate(zip(widths, blocks, strict=True)):
      for block in range(count):
        strides = 2 if stage > 0 and block == 0 else 1
        x = Block(features, strides, self.norm)(x, train=train, mask=mask)
    return x.mean((1, 2))


def wiring(paths: Sequence[str]) -> dict[str, tuple]:
  """Returns the wiring of blocks: Conv_1 is added to the shortcut, Conv_2 or the identity."""
  stem, head = 'trunk/Conv_0', 'head'
  wires, stream = {stem: (None, stem)}, stem
  for block in dict.fromkeys(path.rpartition('/')[0] for path in paths if 'Block' in path):
    first, second, projection = (f'{block}/Conv_{i}' for i in range(3))
    total = second if projection in paths else stream
    wires |= {first: (stream, first), second: (first, total), projection: (stream, total)}
    stream = total
  return {**wires, head: (stream, head)}


def resnet(
    size: str = '9-narrow',
    *,
    norm: str = 'batch',
    classes: int,
    input_shape: PyTree,
    dtype: jnp.dtype = jnp.float32,
) -> Model:
  """Returns one of the residual networks in `SIZES`.

  Reference:
    He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, CVPR 2016,
    arXiv:1512.03385.
  """
  check_choice('size', size, SIZES)
  check_choice('norm', norm, layers.NORMS)
  check_images(f'size={size}', input_shape, least=1)
  trunk = Trunk(SIZES[size], norm)
  return classifier(trunk, classes=classes, input_shape=input_shape, dtype=dtype, wiring=wiring)


def build_resnet(inputs: Inputs, settings) -> Model:
  return resnet(settings.size, norm=settings.norm, classes=inputs.classes,
                input_shape=inputs.shape, dtype=inputs.dtype)


NETWORK = Network(
    'resnet', build_resnet,
    {'size': Setting('9-narrow', 'architecture', choices=SIZES),
     'norm': Setting('batch', 'normalization', choices=layers.NORMS)},
    summary='residual networks for small images',
    paper='He et al. CVPR 2016. arXiv:1512.03385')
