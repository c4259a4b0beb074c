"""Generator of features: synthesizes inputs of a classifier head for given labels."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmm_jax.models import layers
from hmm_jax.types import Array, Generator, InputError


class Network(nn.Module):
  """One hidden layer with ReLU: [B, Z + C] -> [B, F]."""

  hidden: int
  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return layers.dense(nn.relu(layers.dense(x, self.hidden)), self.features)


def generator(*, classes: int, features: int, hidden: int = 256,
              noise: int = 32) -> Generator:
  """Returns a generator of features from noise and a one-hot label.

  The published sizes, (hidden, noise), are (256, 32) for MNIST and EMNIST, (128, 32) for
  CelebA and (512, 64) for CIFAR-10. The published code normalizes the hidden layer by
  BatchNorm and draws uniform noise; here the generator is a function of its parameters
  alone (our choice: no statistics to send or keep), and noise is normal, as in the paper.

  Args:
    classes: C.
    features: F, the width of a head's input.
    hidden: units of the hidden layer.
    noise: Z, dimension of the noise.

  Raises:
    InputError: a setting is out of range.

  Reference: Zhu, Hong, Zhou. Data-Free Knowledge Distillation for Heterogeneous Federated
    Learning. ICML 2021. arXiv:2105.10056.
  """
  if hidden < 1 or noise < 1:
    raise InputError(f'got hidden={hidden}, noise={noise}; expected at least '
                     '1 of each')
  network = Network(hidden, features)

  @jax.jit
  def init(key):
    return network.init(key, jnp.zeros((1, noise + classes)))

  def apply(params, labels, key):
    drawn = jax.random.normal(key, (len(labels), noise))
    x = jnp.concatenate([drawn, jax.nn.one_hot(labels, classes)], axis=1)
    return network.apply(params, x), drawn

  return Generator(init, apply, classes)
