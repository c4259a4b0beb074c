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
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  last = [n - k for n, k in zip(x.shape[1:3], window)]
  return jnp.concatenate(
      [x[:, i:last[0] + i + 1:strides[0], j:last[1] + j + 1:strides[1]]
       for i in range(window[0]) for j in range(window[1])], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, kernel, pads):
  return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=_NHWC)


def _convolve_forward(x, kernel, pads):
  return _convolve(x, kernel, pads), (x, kernel)


def _convolve_backward(pads, residuals, dy):
  x, kernel = residuals
  return _input_gradient(kernel, dy, pads), _kernel_gradient(x, dy, pads).astype(kernel.dtype)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _input_gradient(kernel, dy, pads):
  """Convolves dy with the turned kernel; the border loses what `pads` added."""
  turned = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
  pads = [(n - 1 - low, n - 1 - high) for n, (low, high) in zip(kernel.shape, pads)]
  # The barrier keeps XLA from folding the transpose back into the convolution.
  return lax.conv_general_dilated(
      dy, lax.optimization_barrier(turned), (1, 1), pads, dimension_numbers=_NHWC)


def _kernel_gradient(x, dy, pads):
  """Sums the kernel gradients of slices of the batch that fit into the cache."""
  batch = x.shape[0]
  rows = max(1, _SLICE_BYTES * batch // (x.nbytes + dy.nbytes))
  slices = math.ceil(batch / rows)
  if slices == 1:
    return _slice_gradient(x, dy, pads)
  rows = math.ceil(batch / slices)

  def sliced(a):
    a = jnp.pad(a, ((0, rows * slices - batch), (0, 0), (0, 0), (0, 0)))
    return a.reshape(slices, rows, *a.shape[1:])

  def add(total, pair):
    return total + _slice_gradient(*pair, pads), None

  shape = jax.eval_shape(lambda x, dy: _slice_gradient(x, dy, pads), x, dy)
  zero = jnp.zeros(shape.shape, shape.dtype)
  return lax.scan(add, zero, (sliced(x), sliced(dy)))[0]


def _slice_gradient(x, dy, pads):
  """Convolves x with dy, channels in the place of the batch: [h, w, I, O] float32."""
  x, dy = lax.optimization_barrier((x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)))
  gradient = lax.conv_general_dilated(
      x, dy, (1, 1), pads, dimension_numbers=_NHWC, preferred_element_type=jnp.float32)
  return gradient.transpose(1, 2, 0, 3)


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
