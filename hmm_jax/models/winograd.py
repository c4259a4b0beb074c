"""3x3 convolution with 16 products of matrices for 2x2 outputs, where the plain one takes 36.

Four rows and columns of the image, two of which the next tile shares, are transformed by B^T, the
kernel by G, and the products of the two by A^T:

  B^T = 1  0 -1  0     G = 1    0   0     A^T = 1  1  1  0
        0  1  1  0         1/2  1/2 1/2         0  1 -1 -1
        0 -1  1  0         1/2 -1/2 1/2
        0  1  0 -1         0    0   1

Its gradients are products of the same sizes. Rounding is that of a few more sums.

Reference: Lavin, Gray. Fast Algorithms for Convolutional Neural Networks. CVPR 2016.
  arXiv:1509.09308, F(2x2, 3x3).
"""

from collections.abc import Callable, Sequence
import math

from jax import lax
import jax.numpy as jnp

from hmm_jax.types import Array

_CHANNELS = 32  # With fewer, the transforms take as long as they save.
# With more, a round on two devices was slower than without, although a step on one was faster:
# VGG-16 at batch 32 took 10.0 s instead of 6.7.
_MOST_CHANNELS = 64
_LEAST_TILES = 128  # With fewer, transforming the kernel does.
_MOST_TILES = 2**16  # Transformed tiles take four times the memory of the image.


def pays(x: Array, kernel: Array, strides: Sequence[int],
         pads: Sequence[tuple[int, int]]) -> bool:
  """Returns whether `convolve` can be used and is fast; shapes as there."""
  if kernel.shape[:2] != (3, 3) or max(strides) > 1 or x.dtype != jnp.float32:
    return False
  tiles = len(x) * math.prod(_outputs(x, pads)) // 4
  channels = kernel.shape[2:]
  return (min(channels) >= _CHANNELS and max(channels) <= _MOST_CHANNELS
          and _LEAST_TILES <= tiles <= _MOST_TILES)


def convolve(x: Array, kernel: Array, pads: Sequence[tuple[int, int]]) -> Array:
  """Convolves [B, H, W, I] with [3, 3, I, O] and stride 1: [B, H', W', O]."""
  batch, _, _, channels = x.shape
  height, width = _outputs(x, pads)
  rows, columns = math.ceil(height / 2), math.ceil(width / 2)
  image_tiles = _both_ways(_transform_image, _tiles(x, pads, rows, columns))
  kernels = _both_ways(_transform_kernel, [[kernel[i, j] for j in range(3)] for i in range(3)])
  products = [[image_tiles[i][j].reshape(-1, channels) @ kernels[i][j] for j in range(4)]
              for i in range(4)]
  out = jnp.stack([jnp.stack(row, 1) for row in _both_ways(_transform_products, products)], 1)
  out = out.reshape(batch, rows, columns, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
  return out.reshape(batch, 2 * rows, 2 * columns, -1)[:, :height, :width]


def _outputs(x, pads):
  return [max(0, side + sum(pad) - 2) for side, pad in zip(x.shape[1:3], pads, strict=True)]


def _tiles(x, pads, rows, columns):
  """Returns the entries of all tiles, 4x4 arrays [B, rows, columns, I]."""
  (_, height, width, channels), ((top, _), (left, _)) = x.shape, pads
  x = lax.pad(x, jnp.zeros((), x.dtype), [
      (0, 0, 0), (top, 2 * rows + 2 - height - top, 0), (left, 2 * columns + 2 - width - left, 0),
      (0, 0, 0)])
  x = x.reshape(-1, rows + 1, 2, columns + 1, 2, channels)
  return [[x[:, i // 2:i // 2 + rows, i % 2, j // 2:j // 2 + columns, j % 2] for j in range(4)]
          for i in range(4)]


def _both_ways(transform: Callable, grid: Sequence[Sequence[Array]]) -> list[list[Array]]:
  """Transforms the columns of a grid of arrays, then its rows."""
  columns = [transform(column) for column in zip(*grid, strict=True)]
  return [transform(row) for row in zip(*columns, strict=True)]


def _transform_image(d):
  return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _transform_kernel(g):
  outer, inner = (g[0] + g[2]) / 2, g[1] / 2
  return [g[0], outer + inner, outer - inner, g[2]]


def _transform_products(m):
  return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
