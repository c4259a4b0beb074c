"""Task vectors: models minus their base, in at least float32."""

import jax
import jax.numpy as jnp

from hmm_jax.types import Array, InputError, PyTree


def delta(params: PyTree, base: PyTree) -> PyTree:
  """Returns theta - theta_0.

  Raises:
    InputError: a tensor of the base has another shape than the model's.
  """

  def leaf(path, x, origin):
    if x.shape != origin.shape:
      raise InputError(f'got base{jax.tree_util.keystr(path)} of shape {origin.shape}; expected '
                       f'{x.shape}, as in the models')
    return wide(x) - wide(origin)

  return jax.tree.map_with_path(leaf, params, base)


def deltas(stacked: PyTree, base: PyTree) -> PyTree:
  """Returns theta_k - theta_0, as `delta` does: [K, ...]."""
  return jax.vmap(delta, (0, None))(stacked, base)


def wide(x: Array) -> Array:
  """Casts to float32, if x is narrower."""
  return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
