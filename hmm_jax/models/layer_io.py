"""Inputs and outputs of a network's linear layers, as matrices."""

from collections.abc import Callable
import math
from typing import cast

import flax.linen as nn
from jax import lax
import jax.numpy as jnp

from hmm_jax.types import Array, Linear, PyTree


def record(network: nn.Module, variables: PyTree, x: PyTree) -> dict[str, Linear]:
  """Runs a network in evaluation mode: {module path: Linear}, in the order of execution."""
  seen = {}

  def watch(call: Callable, args, kwargs, context):
    out = call(*args, **kwargs)
    module = context.module
    if context.method_name == '__call__' and isinstance(module, nn.Dense | nn.Conv):
      rows = _patches(module, args[0]) if isinstance(module, nn.Conv) else args[0]
      seen['/'.join(module.path)] = Linear(_matrix(rows), _matrix(out))
    return out

  with nn.intercept_methods(watch):
    network.apply(variables, x, train=False, mask=None)
  return seen


def _patches(conv: nn.Conv, x: Array) -> Array:
  """Returns the input patch of each output position of a convolution: [B, H', W', F].

  F is in the order of the kernel's axes, window first and channels last.
  """
  # `layers.conv` passes a window of two sides, and one number for strides and padding.
  window, channels = cast(tuple[int, int], conv.kernel_size), x.shape[-1]
  strides, padding = cast(int, conv.strides), cast(int, conv.padding)
  patches = lax.conv_general_dilated_patches(
      x, window, (strides, strides), [(padding, padding)] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  apart = patches.reshape(*patches.shape[:-1], channels, math.prod(window))
  return jnp.swapaxes(apart, -1, -2).reshape(patches.shape)


def _matrix(x: Array) -> Array:
  return x.reshape(-1, x.shape[-1]).astype(jnp.float32)
