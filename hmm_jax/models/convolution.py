"""Convolution that is fast inside a loop on a CPU, with its gradients.

XLA:CPU rewrites convolutions into the form its kernels take in the entry
computation only. Inside `scan` or `fori_loop` the gradients that JAX derives keep
dimension numbers no kernel takes and run some 85 times slower. Here they are
written as ordinary convolutions and products, which need no rewriting.

Its kernels are slow for some shapes, too, which become products of matrices instead. Milliseconds
of one device's processor time for the value and both gradients (of first layers the kernel's
only), beside other work on the machine; Winograd's algorithm is used up to 64 channels:

  batch 50                             convolution   one product   Winograd
  2x2 pixels, 512 to 512 channels             1547            35         48
  4x4, 512 to 512                              148           111         86
  8x8, 256 to 256                              154           134         67
  8x8, 64 to 64                               11.1          10.0        6.0
  16x16, 128 to 128                            151           164         83
  32x32, 64 to 64                              157           233        129
  16x16, 16 to 16                              3.4           5.9        4.2
  batch 10, 4x4, 512 to 512                     40            26         47
  32x32, 3 to 6, window 5                     13.3           5.0, by blocks of 4 pixels
  32x32, 3 to 8, window 3                      7.1           3.8, by blocks of 2
  32x32, 8 to 8, window 3                      8.6           8.7, by blocks of 2; batch 10: 3.5, 1.9
  32x32, 3 to 16, window 3                     6.5           7.4, by blocks of 2
"""

from collections.abc import Sequence
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax.models import winograd
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

  On a CPU the gradients of most shapes are written by hand and have no forward mode (jax.jvp).
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
  if winograd.pays(x, kernel, strides, padding):
    return winograd.convolve(x, kernel, padding)
  *image, channels = x.shape[1:]
  features = kernel.shape[3]
  few_pixels = math.prod(image) < channels or any(
      side < width for side, width in zip(image, window, strict=True))
  if max(strides) > 1 or window == (1, 1) or few_pixels:
    return _patches(x, window, strides, padding) @ kernel.reshape(-1, features)
  if max(channels, features) <= 8:
    return _by_blocks(x, kernel, padding, 2 if window[1] <= 3 else 4)
  return _convolve(x, kernel, tuple(map(tuple, padding)))


def _patches(x, window, strides, pads):
  """Concatenates the entries of each window: [B, H', W', h w I]."""
  x = _pad(x, pads)
  _, height, width, _ = x.shape
  rows, columns = max(0, height - window[0] + 1), max(0, width - window[1] + 1)
  return jnp.concatenate(
      [x[:, i:i + rows:strides[0], j:j + columns:strides[1]]
       for i in range(window[0]) for j in range(window[1])], axis=-1)


def _pad(x, pads):
  return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])


def _by_blocks(x, kernel, pads, block):
  """Convolves with stride 1; `block` neighbors of a row are one entry of a product.

  With few channels and features the product of patches and kernel is too narrow to be fast.
  This one is `block` times as wide, and multiplies by some zeros.
  """
  height, width, channels, features = kernel.shape
  x = _pad(x, pads)
  batch, image_height, image_width, _ = x.shape
  rows, columns = max(0, image_height - height + 1), max(0, image_width - width + 1)
  outputs = math.ceil(columns / block)
  inputs = math.ceil((width + block - 1) / block)  # blocks that a window and its neighbors touch
  edge = (outputs + inputs - 1) * block - image_width
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), (0, edge, 0), (0, 0, 0)])
  x = x.reshape(batch, image_height, outputs + inputs - 1, block * channels)
  patches = jnp.concatenate(
      [x[:, i:i + rows, j:j + outputs] for i in range(height) for j in range(inputs)], axis=-1)
  # The kernel of each neighbor is shifted by its place in the block.
  wide = jnp.stack(
      [jnp.pad(kernel, ((0, 0), (s, inputs * block - width - s), (0, 0), (0, 0)))
       for s in range(block)], axis=-2)
  out = patches @ wide.reshape(-1, block * features)
  return out.reshape(batch, rows, outputs * block, features)[:, :, :columns]


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
