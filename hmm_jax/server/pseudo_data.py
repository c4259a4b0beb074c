"""What models are distilled on where there is no data: inverted inputs, or what they stand for.

Each factory returns (merged, stacked, federation, key) -> (x [N, ...], facts): inputs of
`Model.bare`, for the merged model and the K models that it came from.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.client import sampling
from hmm_jax.merging.data_free import invert
from hmm_jax.types import Model


def inverted(model: Model, inversion: Callable, *, whose: Callable, each: Callable, batch: int,
             batches: int) -> Callable:
  """Inverts normalization statistics, a batch at a time.

  The facts are L_inv of the noise that it begins with, of what it found, and of a batch of the
  clients' rows as long, which is read for this report alone: below it, statistics are overfitted.

  Args:
    model: the network.
    inversion: of `invert.inversion`, on `model.bare`.
    whose: (merged, stacked) -> models [M, ...] with the statistics: `of_merged` or `of_each`.
    each: `Mapper.each`: how batches are mapped.
    batch: B, inputs whose statistics are met together.
    batches: of each of those models.
  """

  bare = _bare(model)

  def make(merged, stacked, federation, key):
    key, real_key = jax.random.split(key)
    models = jax.tree.map(lambda x: jnp.repeat(x, batches, axis=0), whose(merged, stacked))
    like = _like(model, merged, federation)
    classes = jax.eval_shape(bare.apply, merged, like)[0].shape[1]

    def one(shared, given):
      key, real = shared
      variables, number = given
      noise_key, label_key, key = jax.random.split(jax.random.fold_in(key, number), 3)
      labels = jax.random.randint(label_key, (batch,), 0, classes)
      start = invert.noise(noise_key, like, batch)
      x, _ = inversion(variables, start, labels, key)
      losses = [invert.statistics_loss(bare, variables, some) for some in (start, x)]
      return x, (*losses, invert.statistics_loss(model, variables, real))

    shared = key, _draw(federation, batch, real_key)
    count = len(jax.tree.leaves(models)[0])
    x, losses = each(one, shared, (models, jnp.arange(count)))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), x), {
        f'inversion/{name}_loss': values.mean()
        for name, values in zip(('noise', 'found', 'real'), losses, strict=True)}

  return make


def noise(model: Model, *, count: int) -> Callable:
  """Draws from N(0, 1): the control, without which nobody knows what the statistics do."""

  def make(merged, stacked, federation, key):
    del stacked
    return invert.noise(key, _like(model, merged, federation), count), {}

  return make


def real_examples(model: Model, *, count: int) -> Callable:
  """Draws training rows of all clients, with replacement: the ceiling, which needs their data."""

  def make(merged, stacked, federation, key):
    del merged, stacked
    return model.normalize(_draw(federation, count, key)), {}

  return make


def of_merged(merged, stacked):
  """Takes the merged model's statistics."""
  del stacked
  return tree.repeat(merged, 1)


def of_each(merged, stacked):
  """Takes those of each model: a merge's say little of the divergent ones."""
  del merged
  return stacked


def _draw(federation, count, key):
  """Draws training rows of all clients, with replacement."""
  everybody = sampling.pool(federation.clients)
  rows = everybody.index[0][jax.random.randint(key, (count,), 0, everybody.size[0])]
  return jax.tree.map(lambda leaf: leaf[rows], federation.examples.x)


def _bare(model):
  return model.bare or model


def _like(model, variables, federation):
  """Returns the shapes of what is made up: images as they are fed, texts embedded."""
  row = lambda x: model.normalize(jax.tree.map(lambda leaf: leaf[:1], x))
  return jax.eval_shape(lambda variables, x: _bare(model).embed(variables, row(x)),
                        variables, federation.examples.x)
