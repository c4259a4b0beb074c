"""Vision transformers: an image is a sequence of square patches."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from hmm_jax.models import layers
from hmm_jax.models import transformer as parts
from hmm_jax.models.classifier import check_choice, check_images, classifier
from hmm_jax.registry import Inputs, Network, Setting
from hmm_jax.types import Array, InputError, Model, PyTree


class Size(NamedTuple):
  """Width of the stream, number of blocks, heads of each, and pixels of a patch's side."""

  width: int
  layers: int
  heads: int
  patch: int


SIZES = {
    # Our choice, for images of 28x28 or 32x32 on a few cores: 208,202 parameters at 28x28x1 with
    # 10 classes.
    'micro': Size(64, 4, 4, 4),
    # At 224x224x3 with 1000 classes 5,717,416, 22,050,664, 86,567,656 and 88,224,232 parameters.
    'tiny': Size(192, 12, 3, 16),
    'small': Size(384, 12, 6, 16),
    'b16': Size(768, 12, 12, 16),
    'b32': Size(768, 12, 12, 32),
}


class ClassToken(nn.Module):
  """Puts a learned token before the others: [B, T, F] -> [B, T + 1, F]."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, _, width = x.shape
    token = self.param('embedding', nn.initializers.zeros, (1, width), jnp.float32)
    first = jnp.broadcast_to(token[None].astype(x.dtype), (batch, 1, width))
    return jnp.concatenate([first, x], axis=1)


class Trunk(nn.Module):
  """Patches, the class token, the blocks of a `Size`: [B, H, W, C] -> the class token [B, F]."""

  size: Size

  @nn.compact
  def __call__(self, x: Array, *, train: bool, mask: Array | None) -> Array:
    x = parts.dense(patches(x, self.size.patch), self.size.width, name='patches',
                    init=layers.lecun)
    x = ClassToken(name='token')(x)
    x = parts.Positions(x.shape[1], name='positions')(x)
    return parts.blocks(x, self.size.layers, heads=self.size.heads, kept=slice(1))[:, 0]


def patches(x: Array, side: int) -> Array:
  """Cuts images into squares, in row-major order: [B, H, W, C] -> [B, T, side^2 C]."""
  batch, height, width, channels = x.shape
  rows, columns = height // side, width // side
  x = x.reshape(batch, rows, side, columns, side, channels).swapaxes(2, 3)
  return x.reshape(batch, rows * columns, side**2 * channels)


def vit(
    size: str = 'micro',
    *,
    patch: int = 0,
    classes: int,
    input_shape: PyTree,
    dtype: jnp.dtype = jnp.float32,
) -> Model:
  """Returns one of the vision transformers in `SIZES`.

  A class token, learned positions, normalization before each layer and the exact GELU. Kernels
  are initialized as in the authors' code, the head as in PyTorch. No dropout.

  Args:
    size: architecture.
    patch: side of a patch in pixels, 0 for the architecture's.

  Raises:
    InputError: an unknown size, inputs that are no images, or a patch that does not divide them.

  Reference:
    Dosovitskiy et al. An Image is Worth 16x16 Words: Transformers for Image Recognition at
    Scale. ICLR 2021. arXiv:2010.11929. Sizes tiny and small: Touvron et al. Training
    data-efficient image transformers & distillation through attention. ICML 2021.
    arXiv:2012.12877.
  """
  check_choice('size', size, SIZES)
  check_images(f'size={size}', input_shape, least=1)
  patch = patch or SIZES[size].patch
  height, width, _ = input_shape
  if height % patch or width % patch:
    fitting = [str(side) for side in range(1, min(height, width) + 1)
               if not height % side and not width % side]
    raise InputError(f'got size={size}, patch={patch} with images of {height}x{width}; expected a '
                     f'patch that divides both sides: {", ".join(fitting)}')
  made = SIZES[size]._replace(patch=patch)
  model = classifier(Trunk(made), classes=classes, input_shape=input_shape, dtype=dtype,
                     wiring=parts.wiring)
  return parts.with_heads(model, made.heads)


def build_vit(inputs: Inputs, settings) -> Model:
  return vit(settings.size, patch=settings.patch, classes=inputs.classes,
             input_shape=inputs.shape, dtype=inputs.dtype)


NETWORK = Network(
    'vit', build_vit,
    {'size': Setting('micro', 'architecture', choices=SIZES),
     'patch': Setting(0, "side of a patch in pixels; 0: the architecture's, 4 of micro, 32 of b32, "
                         '16 of the others', at_least=0)},
    summary='vision transformers',
    paper='Dosovitskiy et al. ICLR 2021. arXiv:2010.11929')
