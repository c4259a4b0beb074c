"""Layers as functions inside a compact module; all compute in the dtype of x."""

import math

import flax.linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp

from hmm_jax.models.convolution import convolution
from hmm_jax.types import Array

NORMS = ('batch', 'group', 'layer', 'none')

# Kaiming's normal initialisation with fan-out, customary for residual nets and VGG.
kaiming = nn.initializers.variance_scaling(2, 'fan_out', 'normal')


def _uniform(fan_in: int) -> Initializer:
  """Returns PyTorch's default for kernels and biases, which the papers' codes use."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def dense(x: Array, features: int, *, name: str | None = None) -> Array:
  """Applies an affine map: [B, F] -> [B, features]."""
  init = _uniform(x.shape[-1])
  layer = nn.Dense(features, dtype=x.dtype, kernel_init=init, bias_init=init, name=name)
  return layer(x)


def conv(
    x: Array,
    features: int,
    *,
    window: int,
    strides: int = 1,
    padding: str = 'SAME',
    bias: bool = True,
    kernel_init: Initializer | None = None,
) -> Array:
  """Applies a square convolution: [B, H, W, C] -> [B, H', W', features].

  SAME means window // 2 zeros on every side, as PyTorch pads, whatever the stride.
  """
  init = _uniform(window**2 * x.shape[-1])
  layer = nn.Conv(
      features, (window, window), strides, window // 2 if padding == 'SAME' else padding,
      use_bias=bias, dtype=x.dtype, kernel_init=kernel_init or init, bias_init=init,
      conv_general_dilated=convolution)
  return layer(x)


def normalise(x: Array, norm: str, *, train: bool, mask: Array | None) -> Array:
  """Normalises [B, ..., C] by one of `NORMS`.

  group: min(32, C / 2) groups, our choice: two channels a group in a narrow net,
  never one, which would leave nothing of a 1x1 image. layer: one group, all of an
  image, with a scale and a bias a channel.

  Args:
    mask: [B] bool, the rows that count in the statistics of a batch.
  """
  match norm:
    case 'batch':
      if mask is not None:
        mask = mask.reshape(-1, *[1] * (x.ndim - 1))
      layer = nn.BatchNorm(
          use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=x.dtype)
      return layer(x, mask=mask)
    case 'group':
      groups = math.gcd(32, x.shape[-1] // 2)
      return nn.GroupNorm(groups, epsilon=1e-5, dtype=x.dtype)(x)
    case 'layer':
      return nn.GroupNorm(1, epsilon=1e-5, dtype=x.dtype)(x)
    case 'none':
      return x


class Dropout(nn.Module):
  """Drops entries in training when a key is there, else passes x on."""

  rate: float

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    active = train and self.has_rng('dropout')
    return nn.Dropout(self.rate, deterministic=not active)(x)
