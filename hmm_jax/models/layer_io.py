"""Inputs and outputs of a network's linear layers, as matrices."""

from collections.abc import Callable, Sequence
import math
from typing import Any

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
      seen['/'.join(module.path)] = linear(module, args[0], out)
    return out

  with nn.intercept_methods(watch):
    network.apply(variables, x, train=False, mask=None)
  return seen


def linear(layer: Any, x: Array, out: Array) -> Linear:
  """Returns what went through a dense layer, or a convolution that `is_plain`."""
  rows = _patches(layer, x) if hasattr(layer, 'kernel_size') else x
  return Linear(_matrix(rows), _matrix(out))


def is_plain(conv: Any) -> bool:
  """Tells whether each output of a convolution, linen or nnx, reads one whole patch."""
  return (conv.feature_group_count == 1 and conv.padding not in ('CIRCULAR', 'CAUSAL', 'REFLECT')
          and set(_sides(conv.input_dilation, 1)) == {1})


def _patches(conv: Any, x: Array) -> Array:
  """Returns the input patch of each output position of a convolution: [B, ..., F].

  F is in the order of the kernel's axes, window first and channels last.
  """
  window, channels = _sides(conv.kernel_size, 1), x.shape[-1]
  axes = len(window)
  padding = conv.padding if isinstance(conv.padding, str) else [
      (pad, pad) if isinstance(pad, int) else tuple(pad) for pad in _sides(conv.padding, axes)]
  letters = 'DHW'[-axes:]
  patches = lax.conv_general_dilated_patches(
      x, window, _sides(conv.strides, axes), padding,
      rhs_dilation=_sides(conv.kernel_dilation, axes),
      dimension_numbers=(f'N{letters}C', f'{letters}IO', f'N{letters}C'))
  apart = patches.reshape(*patches.shape[:-1], channels, math.prod(window))
  return jnp.swapaxes(apart, -1, -2).reshape(patches.shape)


def _sides(value: int | Sequence | None, axes: int) -> tuple:
  """Returns a value of each spatial axis; one number is for all, None is 1."""
  value = 1 if value is None else value
  return (value,) * axes if isinstance(value, int) else tuple(value)


def _matrix(x: Array) -> Array:
  return x.reshape(-1, x.shape[-1]).astype(jnp.float32)
