"""A tiny federation with a server, and tiny networks, on which laws are tried."""

from functools import cache

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from hmm_jax.models import classifier, layers, mlp, symmetry
from hmm_jax.types import Clients, Examples, Federation, Model, Server, Split

CLASSES = 3
SIZES = (6, 3, 5, 8, 1)  # examples of each client
IDS = (7, 2, 9, 0, 4, 5, 3)  # never the positions, so that what follows ids shows


def federation(sizes=SIZES, *, shape=(4,), spare=0, seed=0) -> Federation:
  """Returns clients of these sizes, which differ in their inputs and their classes.

  The last example belongs to no client.

  Args:
    sizes: examples of each client.
    shape: of an input.
    spare: padding beyond the longest client.
    seed: of all examples.
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
  place = rng.permutation(count + held)  # of each of these examples in the data set
  examples = Examples(np.append(np.empty_like(x), np.zeros((1, *shape)), axis=0),
                      np.append(np.empty_like(y), 0))
  examples.x[place], examples.y[place] = x, y
  validation, test = np.split(place[count:], [5])
  return Federation(
      Examples(jnp.asarray(examples.x, jnp.float32), jnp.asarray(examples.y, jnp.int32)),
      clients(np.split(place[:count], np.cumsum(sizes)[:-1]), spare=spare),
      _split(validation, len(sizes)), _split(test, len(sizes)))


def hybrid(sizes=SIZES, *, search=9, held_out=4, seed=0, **settings) -> Federation:
  """Returns such a federation with a server, whose examples lie around the classes' means.

  Args:
    sizes: examples of each client.
    search: examples of the server to learn from.
    held_out: and to evaluate on.
    seed: of all examples.
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


def clients(indices, *, ids=None, spare=0, padding=0) -> Clients:
  """Returns the Clients who hold these lists of examples."""
  width = max(1, *map(len, indices)) + spare
  index = np.full((len(indices), width), padding, np.int32)
  for k, own in enumerate(indices):
    index[k, :len(own)] = own
  return Clients(np.array(IDS[:len(indices)] if ids is None else ids, np.int32), index,
                 np.array([len(own) for own in indices], np.int32))


def _split(own, count):
  """Deals held-out examples to the first clients, two to each; the last hold none."""
  bounds = np.minimum(2 * np.arange(1, count), len(own))
  return Split(jnp.asarray(own, jnp.int32), clients(np.split(own, bounds)))


@cache
def linear() -> Model:
  """Returns softmax regression on inputs [4]."""
  return mlp.mlp((), classes=CLASSES, input_shape=(4,))


@cache
def deep() -> Model:
  """Returns a network with a trunk of 6 hidden units; no layer is as wide as there are clients."""
  return mlp.mlp((6,), classes=CLASSES, input_shape=(4,))


class NormTrunk(nn.Module):
  """BatchNorm of the inputs, whose statistics are easy to say."""

  @nn.compact
  def __call__(self, x, *, train, mask):
    return layers.normalize(x, 'batch', train=train, mask=mask)


@cache
def norm() -> Model:
  """Returns softmax regression on normalized inputs [4]."""
  return classifier.classifier(
      NormTrunk(), classes=CLASSES, input_shape=(4,), wiring=symmetry.chain)
