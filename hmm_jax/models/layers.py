"""Layers as functions for compact modules; each computes in the dtype of x.

Parameters are float32 and, unless stated otherwise, initialized as in PyTorch by default,
which the papers' code uses.
"""

from collections.abc import Sequence
import functools
import math

import flax.linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp

from hmm_jax.models.convolution import convolution
from hmm_jax.types import Array, Key

NORMS = ('batch', 'group', 'layer', 'none')
MOMENTUM = 0.9  # of the running statistics of BatchNorm


def kaiming(key: Key, shape: Sequence[int], dtype: jnp.dtype) -> Array:
  """Draws a kernel from He's normal distribution with fan-out, as usual in ResNet and VGG."""
  fan_out = math.prod(shape) // shape[-2]
  return math.sqrt(2 / fan_out) * _draw(jax.random.normal, key, shape, dtype)


def uniform(fan_in: int) -> Initializer:
  """Returns PyTorch's default initializer of the kernel and the bias of a layer."""
  bound = fan_in**-0.5
  sample = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
  return functools.partial(_draw, sample)


def xavier(key: Key, shape: Sequence[int], dtype: jnp.dtype) -> Array:
  """Draws a matrix from Glorot's uniform distribution, as usual in transformers."""
  bound = math.sqrt(6 / sum(shape))
  return bound * _draw(functools.partial(jax.random.uniform, minval=-1), key, shape, dtype)


def lecun(key: Key, shape: Sequence[int], dtype: jnp.dtype) -> Array:
  """Draws a matrix from LeCun's normal distribution."""
  return normal(shape[0]**-0.5)(key, shape, dtype)


def normal(deviation: float) -> Initializer:
  """Returns the initializer of a normal distribution about 0."""
  return lambda key, shape, dtype: deviation * _draw(jax.random.normal, key, shape, dtype)


def _draw(sample, key, shape, dtype):
  # XLA:CPU compiles a one-dimensional draw ten times faster than a four-dimensional one.
  return sample(key, (math.prod(shape),), dtype).reshape(shape)


def flatten(x: Array) -> Array:
  """Joins all axes but the first, even if B is 0: [B, ...] -> [B, F]."""
  return x.reshape(len(x), math.prod(x.shape[1:]))


def dense(x: Array, features: int, *, name: str | None = None) -> Array:
  """Applies an affine map: [B, F] -> [B, features]."""
  init = uniform(x.shape[-1])
  layer = nn.Dense(features, dtype=x.dtype, kernel_init=init, bias_init=init, name=name)
  return layer(x)


def conv(
    x: Array,
    features: int,
    *,
    window: int,
    strides: int = 1,
    padding: int = 0,
    bias: bool = True,
    kernel_init: Initializer | None = None,
) -> Array:
  """Convolves with a square window: [B, H, W, C] -> [B, H', W', features].

  Args:
    padding: zeros on each side of the image.
    kernel_init: PyTorch's default, uniform, if None.
  """
  init = uniform(window**2 * x.shape[-1])
  layer = nn.Conv(
      features, (window, window), strides, padding, use_bias=bias, dtype=x.dtype,
      kernel_init=kernel_init or init, bias_init=init, conv_general_dilated=convolution)
  return layer(x)


def normalize(x: Array, norm: str, *, train: bool, mask: Array | None) -> Array:
  """Normalizes [B, ..., C] by one of `NORMS`.

  batch: masked examples count in no statistic. group: min(32, C / 2) groups, our choice:
  two channels per group in narrow networks, as a single one is constant on a 1x1 image.
  layer: one group, the whole image, with a scale and a bias per channel.

  Args:
    mask: [B] bool, not all False, or None.
  """
  match norm:
    case 'batch':
      if mask is not None:
        mask = jnp.reshape(mask, (-1, *[1] * (x.ndim - 1)))
      layer = nn.BatchNorm(
          use_running_average=not train, momentum=MOMENTUM, epsilon=1e-5, dtype=x.dtype)
      return layer(x, mask=mask)
    case 'group':
      return nn.GroupNorm(math.gcd(32, x.shape[-1] // 2), epsilon=1e-5, dtype=x.dtype)(x)
    case 'layer':
      return nn.GroupNorm(1, epsilon=1e-5, dtype=x.dtype)(x)
    case _:
      return x


class Dropout(nn.Module):
  """Dropout in training, if there is a key; otherwise the identity."""

  rate: float

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    active = train and self.has_rng('dropout')
    return nn.Dropout(self.rate, deterministic=not active)(x)
