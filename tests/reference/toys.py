"""Tiny federations, networks and helpers that many tests share."""

from functools import cache, partial

import flax.linen as nn
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding
import numpy as np

from hmm_jax.check.toys import (  # noqa: F401, for tests as toys.federation etc.
  CLASSES,
  IDS,
  SIZES,
  clients,
  federation,
  hybrid,
  linear,
  norm,
)
from hmm_jax.client import mappers
from hmm_jax.models import classifier, layers, mlp

# Compiling is nearly all of such a test's time; without optimization it takes far less.
jit = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def rows(held):
  """Returns the row numbers of each client, without the padding."""
  return [index[:size] for index, size in zip(held.index, held.size, strict=True)]


def tables(made):
  """Returns [(x, y) of each client], in float64, for the NumPy twins."""
  x, y = np.asarray(made.examples.x, np.float64), np.asarray(made.examples.y)
  return [(x[own], y[own]) for own in rows(made.clients)]


def central(made, rows=slice(None)):
  """Returns the server's rows, or some of them, as (x, y) in float64."""
  x, y = made.server.examples
  return np.asarray(x, np.float64)[rows], np.asarray(y)[rows]


def one(made, k):
  """Returns one row of Clients."""
  return jax.tree.map(lambda x: x[k], made.clients)


@cache
def perceptron():
  """Returns a network with 5 hidden units on inputs [4]."""
  return mlp.mlp((5,), classes=CLASSES, input_shape=(4,))


class ConvTrunk(nn.Module):
  """A convolution, BatchNorm and the mean over the image."""

  @nn.compact
  def __call__(self, x, *, train, mask):
    x = layers.conv(x, 4, window=3)
    return nn.relu(layers.normalize(x, 'batch', train=train, mask=mask)).mean((1, 2))


@cache
def cnn():
  """Returns a convolutional network with BatchNorm on images [4, 4, 1]."""
  return classifier.classifier(ConvTrunk(), classes=CLASSES, input_shape=(4, 4, 1))


@cache
def mesh():
  """Returns the four fake devices of conftest.py, which share the clients."""
  return jax.make_mesh((4,), ('clients',), axis_types=(AxisType.Auto,))


@cache
def lifts():
  """Returns every way to map clients, by name; 5 clients fill neither chunks nor devices."""
  return {
      'map': mappers.one_by_one(),
      **{f'vmap-{chunk}': mappers.vectorized(chunk) for chunk in range(4)},
      'sharded-map': mappers.sharded(mesh(), mappers.one_by_one()),
      'sharded-vmap': mappers.sharded(mesh(), mappers.vectorized()),
  }


def sharding(lift):
  """Returns where models and data live under one of `lifts`."""
  if lift.startswith('sharded'):
    return NamedSharding(mesh(), PartitionSpec())
  return SingleDeviceSharding(jax.devices()[0])


@cache
def start(network):
  """Returns the variables that a test begins from."""
  return jit(network().init)(key(0))


def twin(variables):
  """Returns a model's parameters as the NumPy twins name them, in float64."""
  params = {name: variables['params']['head'][name] for name in ('kernel', 'bias')}
  trunk = variables['params'].get('trunk', {})
  if 'Dense_0' in trunk:
    params |= {f'hidden_{name}': value for name, value in trunk['Dense_0'].items()}
  return {name: np.asarray(value, np.float64) for name, value in params.items()}


def key(number):
  return jax.random.key(100 + number)


def assert_close(got, wanted, *, rtol=2e-5, atol=2e-6):
  """Compares two trees leaf by leaf, and their structures."""
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  leaves = jax.tree.leaves_with_path(wanted)
  for leaf, (path, other) in zip(jax.tree.leaves(got), leaves, strict=True):
    np.testing.assert_allclose(leaf, other, rtol=rtol, atol=atol,
                               err_msg=jax.tree_util.keystr(path))


def assert_far(got, wanted, *, least=1e-3):
  """Says that some entry of two trees of one structure differs clearly."""
  gaps = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), got, wanted)
  largest = max(jax.tree.leaves(gaps))
  assert largest > least, f'got a largest difference of {largest}; expected more than {least}'
