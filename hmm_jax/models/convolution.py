"""Convolution and max-pooling whose gradients stay fast inside a loop on a CPU.

XLA:CPU rewrites convolutions into the form its kernels take in the entry
computation only. Inside `scan` or `fori_loop` the gradients that JAX derives keep
dimension numbers no kernel takes and run some 85 times slower. Here they are
written as ordinary convolutions, which need no rewriting.
"""

from collections.abc import Sequence
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax.types import Array

_Pads = tuple[tuple[int, int], tuple[int, int]]

_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

# The images and gradients that the kernel gradient takes at once: about one L2 cache.
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
  """Convolves like lax.conv_general_dilated; an argument of flax.linen.Conv.

  On a CPU the gradients are written by hand; they have no forward mode. Other
  backends, dilations and groups are left to lax.

  Args:
    x: [B, H, W, I].
    kernel: [h, w, I, O].
    strides, padding and the rest: as in lax.conv_general_dilated.

  Returns:
    [B, H', W', O].
  """
  by_hand = (
      jax.default_backend() == 'cpu'
      and dimension_numbers == _NHWC
      and feature_group_count == 1
      and {*lhs_dilation, *rhs_dilation} == {1})
  if not by_hand:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
        feature_group_count, precision=precision)
  window = kernel.shape[:2]
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
  if max(strides) > 1 or window == (1, 1):
    return _matmul(x, kernel, strides, padding)
  return _convolve(x, kernel, tuple(map(tuple, padding)))


def _matmul(x, kernel, strides, pads):
  """Convolves as the product of all patches, [B, H', W', h w I], and the kernel."""
  h, w, _, features = kernel.shape
  patches = _patches(x, (h, w), strides, pads)
  return patches @ kernel.reshape(-1, features)


def _patches(x, window, strides, pads):
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
  rows, columns = (max(0, n - k + 1) for n, k in zip(x.shape[1:], window))
  return jnp.concatenate(
      [x[:, i:i + rows:strides[0], j:j + columns:strides[1]]
       for i in range(window[0]) for j in range(window[1])], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, kernel, pads):
  *_, channels, features = kernel.shape
  if 1 < channels < 4 and features > 16:
    # Colour images: four channels go through the kernel that XLA takes 4 times faster.
    fourth = (0, 4 - channels)
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), (0, 0), (0, 0), fourth)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), fourth, (0, 0)))
  return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=_NHWC)


def _convolve_forward(x, kernel, pads):
  return _convolve(x, kernel, pads), (x, kernel)


def _convolve_backward(pads, residuals, dy):
  x, kernel = residuals
  return _input_gradient(dy, kernel, pads), _kernel_gradient(x, dy, kernel, pads)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _input_gradient(dy, kernel, pads):
  """Convolves dy with the turned kernel; the border loses what `pads` added."""
  turned = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
  pads = [(n - 1 - low, n - 1 - high) for n, (low, high) in zip(kernel.shape, pads)]
  # The barrier keeps XLA from folding the transpose back into the convolution.
  return lax.conv_general_dilated(
      dy, lax.optimization_barrier(turned), (1, 1), pads, dimension_numbers=_NHWC)


def _kernel_gradient(x, dy, kernel, pads):
  """Sums the gradients of slices of the batch, each small enough for the cache."""
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

  zero = jnp.zeros_like(kernel, _accumulator(x))
  total, _ = lax.scan(add, zero, (sliced(x), sliced(dy)))
  return total.astype(kernel.dtype)


def _slice_gradient(x, dy, pads):
  """Convolves x with dy, channels in the place of the batch and rows in theirs."""
  x, dy = lax.optimization_barrier((x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)))
  gradient = lax.conv_general_dilated(
      x, dy, (1, 1), pads, dimension_numbers=_NHWC, preferred_element_type=_accumulator(x))
  return gradient.transpose(1, 2, 0, 3)


def _accumulator(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def max_pool(x: Array, window: int = 2) -> Array:
  """Takes the maximum of each window x window square; what is left over is cropped.

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
  """Returns the window^2 arrays [B, H', W', C] of a window's entries, row-major."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // window, window, width // window, window, channels)
  return [x[:, :, i, :, j] for i in range(window) for j in range(window)]


def _pool_forward(x, window):
  taps = _taps(x, window)
  out = functools.reduce(jnp.maximum, taps)
  first = jnp.full(out.shape, len(taps) - 1, jnp.int8)
  for i in reversed(range(len(taps) - 1)):
    first = jnp.where(taps[i] == out, jnp.int8(i), first)
  return out, first


def _pool_backward(window, first, dy):
  batch, height, width, channels = dy.shape
  tap = jnp.arange(window**2, dtype=jnp.int8).reshape(1, 1, window, 1, window, 1)
  hit = first[:, :, None, :, None] == tap
  dx = jnp.where(hit, dy[:, :, None, :, None], 0)
  return (dx.reshape(batch, height * window, width * window, channels),)


_pool.defvjp(_pool_forward, _pool_backward)
