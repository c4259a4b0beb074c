"""VGG-16 for 32x32 images."""

import flax.linen as nn
import jax.numpy as jnp

from hmm_jax.models import layers
from hmm_jax.models.classifier import check_choice, check_images, classifier
from hmm_jax.models.pooling import max_pool
from hmm_jax.models.symmetry import chain
from hmm_jax.registry import Inputs, Network, Setting
from hmm_jax.types import Array, Model, PyTree

# Each stage ends with a 2x2 max-pool.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Trunk(nn.Module):
  """Thirteen 3x3 convolutions and two hidden layers of 4096 with dropout."""

  norm: str

  @nn.compact
  def __call__(self, x: Array, *, train: bool, mask: Array | None) -> Array:
    for stage in _STAGES:
      for features in stage:
        x = layers.conv(x, features, window=3, padding=1, kernel_init=layers.kaiming)
        x = nn.relu(layers.normalize(x, self.norm, train=train, mask=mask))
      x = max_pool(x)
    x = layers.flatten(x)
    for _ in range(2):
      x = layers.Dropout(0.5)(nn.relu(layers.dense(x, 4096)), train=train)
    return x


def vgg16(
    *,
    norm: str = 'batch',
    classes: int,
    input_shape: PyTree,
    dtype: jnp.dtype = jnp.float32,
) -> Model:
  """Returns VGG-16, 33,646,666 parameters on 32x32x3 with 10 classes and BatchNorm.

  Reference:
    Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
    Recognition, ICLR 2015, arXiv:1409.1556.
  """
  check_choice('norm', norm, layers.NORMS)
  check_images('vgg16', input_shape, least=32)
  return classifier(Trunk(norm), classes=classes, input_shape=input_shape, dtype=dtype,
                    wiring=chain)


def build_vgg16(inputs: Inputs, settings) -> Model:
  return vgg16(norm=settings.norm, classes=inputs.classes, input_shape=inputs.shape,
               dtype=inputs.dtype)


NETWORK = Network(
    'vgg16', build_vgg16,
    {'norm': Setting('batch', 'normalization', choices=layers.NORMS)},
    summary='VGG-16 for 32x32 images',
    paper='Simonyan, Zisserman. ICLR 2015. arXiv:1409.1556')
