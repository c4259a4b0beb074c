"""Max-pooling whose gradient stays fast inside a loop on a CPU."""

import functools

import jax
import jax.numpy as jnp

from hmm_jax.types import Array


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
