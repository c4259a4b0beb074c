"""Convolution and max-pooling whose gradients stay fast inside a loop on a CPU.

XLA:CPU rewrites convolutions into the form its kernels take in the entry
computation only. Inside `scan` or `fori_loop` the gradients that JAX derives keep
dimension numbers no kernel takes and run some 85 times slower. Here they are
written as ordinary convolutions and products, which need no rewriting.
"""

from collections.abc import Sequence
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax.types import Array

_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

# Bytes of x and dy that the kernel gradient takes at once: about an L2 cache. For the small
# CNN slicing saves 14 % of a training step at batch 50 and 18 % at 128.
_SLICE_BYTES = 2**20


def convolution(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: lax.ConvDimensionNumbers = _NHWC,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
) -> Array:
  """Convolves as lax.conv_general_dilated; to be passed to flax.linen.Conv.

  On a CPU the gradients are written by hand and have no forward mode (jax.jvp).
  Other backends, dilations and groups are left to lax.

  Args:
    x: [B, H, W, I].
    kernel: [h, w, I, O].
    strides, padding and the rest: as lax.conv_general_dilated takes them.

  Returns:
    [B, H', W', O].
  """
  plain = (
      dimension_numbers == _NHWC and feature_group_count == 1
      and {*lhs_dilation, *rhs_dilation} == {1})
  if jax.default_backend() != 'cpu' or not plain:
    return lax.conv_general_dilated(
        jnp.asarray(x), jnp.asarray(kernel), strides, padding, lhs_dilation, rhs_dilation,
        dimension_numbers, feature_group_count, precision=precision)
  window = kernel.shape[:2]
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
  if max(strides) > 1 or window == (1, 1):
    return _patches(x, window, strides, padding) @ kernel.reshape(-1, kernel.shape[3])
  return _convolve(x, kernel, tuple(map(tuple, padding)))


def _patches(x, window, strides, pads):
  """Concatenates the entries of each window: [B, H', W', h w I]."""
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
  _, height, width, _ = x.shape
  rows, columns = max(0, height - window[0] + 1), max(0, width - window[1] + 1)
  return jnp.concatenate(
      [x[:, i:i + rows:strides[0], j:j + columns:strides[1]]
       for i in range(window[0]) for j in range(window[1])], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, kernel, pads):
  """Convolves with stride 1."""
  *_, channels, features = kernel.shape
  if 1 < channels < 4 and features > 16:
    # Color images: with a fourth channel XLA:CPU takes a quarter of the time.
    fourth = (0, 4 - channels)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), fourth))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), fourth, (0, 0)))
  return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=_NHWC)


def _convolve_forward(x, kernel, pads):
  return _convolve(x, kernel, pads), (x, kernel)


def _convolve_backward(pads, residuals, dy):
  x, kernel = residuals
  return _input_gradient(dy, kernel, pads), _kernel_gradient(x, dy, kernel, pads)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _input_gradient(dy, kernel, pads):
  """Convolves dy with the flipped kernel, and crops the padding."""
  flipped = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
  window = kernel.shape[:2]
  pads = [(n - 1 - low, n - 1 - high) for n, (low, high) in zip(window, pads, strict=True)]
  return lax.conv_general_dilated(dy, flipped, (1, 1), pads, dimension_numbers=_NHWC)


def _kernel_gradient(x, dy, kernel, pads):
  """Sums the gradients over slices of the batch, each small enough for the cache."""
  batch = x.shape[0]
  rows = math.ceil(batch / max(1, math.ceil((x.nbytes + dy.nbytes) / _SLICE_BYTES)))
  if rows >= batch:
    return _slice_gradient(x, dy, pads).astype(kernel.dtype)
  slices = math.ceil(batch / rows)

  def sliced(a):
    a = jnp.pad(a, ((0, slices * rows - batch), (0, 0), (0, 0), (0, 0)))
    return a.reshape(slices, rows, *a.shape[1:])

  def add(total, pair):
    return total + _slice_gradient(*pair, pads), None

  zero = jnp.zeros_like(kernel, _accumulator(x))  # Keeps the kernel's varying mesh axes.
  total, _ = lax.scan(add, zero, (sliced(x), sliced(dy)))
  return total.astype(kernel.dtype)


def _slice_gradient(x, dy, pads):
  """Convolves x with dy, both with batch and channel axes swapped."""
  gradient = lax.conv_general_dilated(
      x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), (1, 1), pads, dimension_numbers=_NHWC,
      preferred_element_type=_accumulator(x))
  return gradient.transpose(1, 2, 0, 3)


def _accumulator(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def max_pool(x: Array, window: int = 2) -> Array:
  """Takes the maximum of each window x window square; crops the remainder at the edge.

  The gradient goes to the first maximum in row-major order.

  Args:
    x: [B, H, W, C].

  Returns:
    [B, H // window, W // window, C].
  """
  _, height, width, _ = x.shape
  return _pool(x[:, :height // window * window, :width // window * window], window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(x, window):
  return functools.reduce(jnp.maximum, _taps(x, window))


def _taps(x, window):
  """Returns the window^2 entries of all squares in row-major order, each [B, H', W', C]."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // window, window, width // window, window, channels)
  return [x[:, :, i, :, j] for i in range(window) for j in range(window)]


def _pool_forward(x, window):
  taps = _taps(x, window)
  out = functools.reduce(jnp.maximum, taps)
  first = jnp.full(out.shape, len(taps) - 1)
  for i in reversed(range(len(taps) - 1)):
    first = jnp.where(taps[i] == out, i, first)
  return out, first


def _pool_backward(window, first, dy):
  batch, height, width, channels = dy.shape
  tap = jnp.arange(window**2).reshape(1, 1, window, 1, window, 1)
  dx = jnp.where(first[:, :, None, :, None] == tap, dy[:, :, None, :, None], 0)
  return (dx.reshape(batch, height * window, width * window, channels),)


_pool.defvjp(_pool_forward, _pool_backward)
