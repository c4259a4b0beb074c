"""Random augmentation of training images, inside the training step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hmm_jax.types import Array, InputError, Key, PyTree

_MOST_PADDING = 256


def on_images(augment: Callable[[Key, Array], Array]) -> Callable[[Key, PyTree], PyTree]:
  """Returns fn(key, x) that augments leaves [B, H, W, C], the images, and leaves others alone."""
  return lambda key, x: jax.tree.map(
      lambda leaf: augment(key, leaf) if leaf.ndim == 4 else leaf, x)


def crop_flip(padding: int) -> Callable[[Key, Array], Array]:
  """Returns fn(key, x [B, H, W, C]) -> x that crops at random and mirrors half of the images.

  Args:
    padding: zero pixels added on every side before cropping to H x W.

  Reference: K. He et al. "Deep Residual Learning for Image Recognition". CVPR 2016.
  arXiv:1512.03385, section 4.2.

  Raises:
    InputError: more padding than images are large.
  """
  if not 0 <= padding <= _MOST_PADDING:
    raise InputError(f'got crop_padding={padding}; expected from 0 to {_MOST_PADDING} pixels')

  def augment(key, x):
    crop_key, flip_key = jax.random.split(key)
    batch, height, width, _ = x.shape
    top, left = jax.random.randint(crop_key, (2, batch, 1), 0, 2 * padding + 1)
    flip = jax.random.bernoulli(flip_key, shape=(batch, 1))
    rows = top + jnp.arange(height)[None]
    columns = left + jnp.arange(width)[None]
    columns = jnp.where(flip, columns[:, ::-1], columns)
    # Two gathers of whole rows and columns: 80 us for 50 CIFAR images on a CPU in a
    # scan, where one dynamic_slice per image takes 1.5 ms.
    x = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    x = jnp.take_along_axis(x, rows[:, :, None, None], axis=1)
    return jnp.take_along_axis(x, columns[:, None, :, None], axis=2)

  return augment
