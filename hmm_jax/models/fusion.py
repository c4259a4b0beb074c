"""Fusion network: image and text branches with BatchNorm after every hidden layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmm_jax.models import layers
from hmm_jax.models.classifier import check_images, classifier
from hmm_jax.models.pooling import max_pool
from hmm_jax.models.symmetry import chain
from hmm_jax.registry import Inputs, Network, Setting
from hmm_jax.types import Array, Embedded, InputError, Model, PyTree

_AXES = {'image': 3, 'text': 1}  # of one example


class Images(nn.Module):
  """3x3 convolutions, each with BatchNorm, ReLU and a 2x2 max-pool; then the mean over pixels."""

  channels: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Array, *, train: bool, mask: Array | None) -> Array:
    for features in self.channels:
      x = layers.conv(
          x, features, window=3, padding=1, bias=False, kernel_init=layers.kaiming)
      x = max_pool(nn.relu(layers.normalize(x, 'batch', train=train, mask=mask)))
    return x.mean((1, 2))


class Dense(nn.Module):
  """A dense layer (skipped for Embedded inputs), BatchNorm and ReLU: [B, F] -> [B, features]."""

  features: int

  @nn.compact
  def __call__(self, x: Array | Embedded, *, train: bool, mask: Array | None) -> Array:
    x = x.x if isinstance(x, Embedded) else layers.dense(x, self.features)
    return nn.relu(layers.normalize(x, 'batch', train=train, mask=mask))


class Trunk(nn.Module):
  """Parallel branches and a joint layer; an absent branch has no parameters."""

  channels: tuple[int, ...]
  embedding: int
  hidden: int

  @nn.compact
  def __call__(self, x: PyTree, *, train: bool, mask: Array | None) -> Array:
    branches = {'image': Images(self.channels, name='image'),
                'text': Dense(self.embedding, name='text')}
    parts = x if isinstance(x, dict) else {_modality(jax.tree.leaves(x)[0].shape[1:]): x}
    features = [branches[name](parts[name], train=train, mask=mask) for name in sorted(parts)]
    x = jnp.concatenate(features, axis=-1)
    return Dense(self.hidden, name='joint')(x, train=train, mask=mask)


def fusion(
    channels: tuple[int, ...] = (16, 32, 64),
    embedding: int = 128,
    hidden: int = 128,
    *,
    classes: int,
    input_shape: PyTree,
    dtype: jnp.dtype = jnp.float32,
) -> Model:
  """Returns a network for images, text, or both, concatenated before a dense layer.

  The text branch begins with a dense embedding and BatchNorm ('trunk/text/Dense_0' and
  'trunk/text/BatchNorm_0'), so that the model holds the statistics of texts in the embedding
  space: text is inverted there (`Model.embed`), images in pixel space. Sizes and layers are our
  choice. The permutation symmetry is known for one branch only, as two share the joint layer.

  Args:
    channels: of the convolutions of the image branch, each of which halves the image.
    embedding: width of the text branch.
    hidden: width of the joint layer.
    input_shape: {'image': (H, W, C), 'text': (F,)}, or the shape of the only input.

  Raises:
    InputError: a width below 1, no convolution, images too small for them, or other inputs.
  """
  if not channels or min(*channels, embedding, hidden) < 1:
    raise InputError(f'got channels={tuple(channels)}, embedding={embedding}, '
                     f'hidden={hidden}; expected widths of at least 1')
  shapes = input_shape if isinstance(input_shape, dict) else {_modality(input_shape): input_shape}
  if any(len(shape) != _AXES.get(name) for name, shape in shapes.items()):
    raise InputError(f'got model=fusion with inputs of shape {input_shape}; expected images '
                     '[H, W, C], vectors of text [F], or both')
  if 'image' in shapes:
    check_images(f'channels={tuple(channels)}', shapes['image'], least=2 ** len(channels))
  if isinstance(input_shape, dict):
    input_shape = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
  trunk = Trunk(tuple(channels), embedding, hidden)
  model = classifier(trunk, classes=classes, input_shape=input_shape, dtype=dtype,
                     wiring=chain if len(shapes) == 1 else None)
  return model._replace(embed=embed)


def embed(variables: PyTree, x: PyTree) -> PyTree:
  """Replaces texts by their Embedded vectors; images stay."""
  layer = variables['params']['trunk'].get('text')
  place = lambda text: Embedded(text @ layer['Dense_0']['kernel'] + layer['Dense_0']['bias'][None])
  if isinstance(x, dict):
    return {**x, 'text': place(x['text'])}
  return place(x) if layer else x


def _modality(shape: tuple[int, ...]) -> str:
  """Returns the modality of inputs that are one array."""
  return 'image' if len(shape) == _AXES['image'] else 'text'


def build_fusion(inputs: Inputs, settings) -> Model:
  return fusion(settings.channels, settings.embedding, settings.hidden,
                classes=inputs.classes, input_shape=inputs.shape, dtype=inputs.dtype)


NETWORK = Network(
    'fusion', build_fusion,
    {'channels': Setting((16, 32, 64), "channels of the image branch's convolutions", at_least=1,
                         at_most=10**5),
     'embedding': Setting(128, 'width of the text branch', at_least=1, at_most=10**6),
     'hidden': Setting(128, 'width of the joint layer', at_least=1, at_most=10**6)},
    takes=('arrays', 'modalities'),
    summary='an image branch, a text branch, or both in parallel')
