"""Inputs for data-free distillation: inverted inputs, or noise and real examples as baselines.

Each factory returns (merged, stacked, federation, key) -> (x [N, ...], diagnostics): inputs of
`Model.bare`, for the merged model and the K models that it was merged from.
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
  """Synthesizes inputs by inverting normalization statistics, one batch at a time.

  The diagnostics are L_inv of the initial noise, of the synthesized inputs, and of a batch of
  the clients' examples of the same size, which is read for this report only: a lower L_inv than
  that of real examples means that the statistics are overfitted.

  Args:
    model: the network.
    inversion: a function made by `invert.inversion` for `model.bare`.
    whose: (merged, stacked) -> models [M, ...] whose statistics are inverted: `of_merged` or
      `of_each`.
    each: `Mapper.each`: how batches are mapped.
    batch: B, inputs that are optimized jointly.
    batches: number of batches for each of the M models.
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
    count = tree.count(models)
    x, losses = each(one, shared, (models, jnp.arange(count)))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), x), {
        f'inversion/{name}_loss': values.mean()
        for name, values in zip(('noise', 'found', 'real'), losses, strict=True)}

  return make


def noise(model: Model, *, count: int) -> Callable:
  """Draws inputs from N(0, 1): the baseline that isolates the effect of the statistics."""

  def make(merged, stacked, federation, key):
    del stacked
    return invert.noise(key, _like(model, merged, federation), count), {}

  return make


def real_examples(model: Model, *, count: int) -> Callable:
  """Draws training examples of all clients, with replacement: the upper bound, not data-free."""

  def make(merged, stacked, federation, key):
    del merged, stacked
    return model.normalize(_draw(federation, count, key)), {}

  return make


def of_merged(merged, stacked):
  """Returns the merged model, as a stack of one."""
  del stacked
  return tree.repeat(merged, 1)


def of_each(merged, stacked):
  """Returns all K models, as merging the statistics of divergent models loses information."""
  del merged
  return stacked


def _draw(federation, count, key):
  """Draws training examples of all clients, with replacement."""
  together = sampling.pool(federation.clients)
  rows = together.index[0][jax.random.randint(key, (count,), 0, together.size[0])]
  return jax.tree.map(lambda leaf: leaf[rows], federation.examples.x)


def _bare(model):
  return model.bare or model


def _like(model, variables, federation):
  """Returns the shapes of synthesized inputs: normalized images, embedded texts."""
  row = lambda x: model.normalize(jax.tree.map(lambda leaf: leaf[:1], x))
  return jax.eval_shape(lambda variables, x: _bare(model).embed(variables, row(x)),
                        variables, federation.examples.x)
