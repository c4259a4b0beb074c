"""Tiny federations, networks and helpers that many tests share."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding
import numpy as np

from hmm_jax.client import mappers
from hmm_jax.models import classifier, layers, mlp, symmetry
from hmm_jax.types import Clients, Examples, Federation, Server, Split

CLASSES = 3
SIZES = (6, 3, 5, 8, 1)
IDS = (7, 2, 9, 0, 4, 5, 3)  # never the positions, so that what follows ids shows

# Compiling is nearly all of such a test's time; without optimization it takes far less.
jit = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def federation(sizes=SIZES, *, shape=(4,), spare=0, seed=0):
  """Returns clients of these sizes, which differ in their inputs and their classes.

  The last row of the examples is nobody's.

  Args:
    sizes: rows of each client.
    shape: of an input.
    spare: padding beyond the longest client.
  """
  rng = np.random.default_rng(seed)
  count, held = sum(sizes), 12
  own = np.repeat(np.arange(len(sizes)), sizes)
  favorite = rng.random(count) < 0.7
  y = np.concatenate([np.where(favorite, own % CLASSES, rng.integers(0, CLASSES, count)),
                      rng.integers(0, CLASSES, held)])
  prototypes = rng.normal(size=(CLASSES, *shape))
  shift = rng.normal(size=(len(sizes) + 1, *shape))[np.append(own, [len(sizes)] * held)]
  x = prototypes[y] + 0.5 * shift + 0.5 * rng.normal(size=(count + held, *shape))
  place = rng.permutation(count + held)  # of each of these rows in the data set
  examples = Examples(np.append(np.empty_like(x), np.zeros((1, *shape)), axis=0),
                      np.append(np.empty_like(y), 0))
  examples.x[place], examples.y[place] = x, y
  validation, test = np.split(place[count:], [5])
  return Federation(
      Examples(jnp.asarray(examples.x, jnp.float32), jnp.asarray(examples.y, jnp.int32)),
      clients(np.split(place[:count], np.cumsum(sizes)[:-1]), spare=spare),
      _split(validation, len(sizes)), _split(test, len(sizes)))


def hybrid(sizes=SIZES, *, search=9, held_out=4, seed=0, **settings):
  """Returns such a federation with a server, whose rows are spread around the classes' means.

  Args:
    sizes: rows of each client.
    search: rows of the server to learn from.
    held_out: and to judge by.
    seed: of all rows.
    **settings: of `federation`.
  """
  made = federation(sizes, seed=seed, **settings)
  rng = np.random.default_rng([seed, 1])
  count = search + held_out
  x, labels = (np.asarray(leaf)[:-1] for leaf in made.examples)
  means = np.stack([x[labels == c].mean(axis=0) for c in range(CLASSES)])
  y = rng.permutation(np.arange(count) % CLASSES)
  examples = Examples(
      jnp.asarray(means[y] + 0.7 * rng.normal(size=(count, *x.shape[1:])), jnp.float32),
      jnp.asarray(y, jnp.int32))
  place = rng.permutation(count)
  return made._replace(server=Server(
      examples, *(jnp.asarray(np.sort(rows), jnp.int32) for rows in np.split(place, [search]))))


def _split(own, count):
  """Deals held-out rows to the first clients, two to each; the last hold none."""
  bounds = np.minimum(2 * np.arange(1, count), len(own))
  return Split(jnp.asarray(own, jnp.int32), clients(np.split(own, bounds)))


def clients(rows, *, ids=None, spare=0, padding=0):
  """Returns the Clients who hold these lists of row numbers."""
  width = max(1, *map(len, rows)) + spare
  index = np.full((len(rows), width), padding, np.int32)
  for k, own in enumerate(rows):
    index[k, :len(own)] = own
  return Clients(np.array(IDS[:len(rows)] if ids is None else ids, np.int32), index,
                 np.array([len(own) for own in rows], np.int32))


def rows(held):
  """Returns the row numbers of each client, without the padding."""
  return [index[:size] for index, size in zip(held.index, held.size, strict=True)]


def tables(federation):
  """Returns [(x, y) of each client], in float64, for the NumPy twins."""
  x, y = np.asarray(federation.examples.x, np.float64), np.asarray(federation.examples.y)
  return [(x[own], y[own]) for own in rows(federation.clients)]


def central(federation, rows=slice(None)):
  """Returns the server's rows, or some of them, as (x, y) in float64."""
  x, y = federation.server.examples
  return np.asarray(x, np.float64)[rows], np.asarray(y)[rows]


def one(federation, k):
  """Returns one row of Clients."""
  return jax.tree.map(lambda x: x[k], federation.clients)


@cache
def linear():
  """Returns softmax regression on inputs [4]."""
  return mlp.mlp((), classes=CLASSES, input_shape=(4,))


@cache
def perceptron():
  """Returns a network with 5 hidden units on inputs [4]."""
  return mlp.mlp((5,), classes=CLASSES, input_shape=(4,))


class NormTrunk(nn.Module):
  """BatchNorm of the inputs, whose statistics are easy to say."""

  @nn.compact
  def __call__(self, x, *, train, mask):
    return layers.normalize(x, 'batch', train=train, mask=mask)


@cache
def norm():
  """Returns softmax regression on normalized inputs [4]."""
  return classifier.classifier(
      NormTrunk(), classes=CLASSES, input_shape=(4,), wiring=symmetry.chain)


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
