"""Evaluation of models on examples: loss and correctness."""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax
import jax.numpy as jnp
import optax

from hmm_jax.client.local import gather
from hmm_jax.types import Array, Batch, Examples, Mapper, Model, PyTree


def cross_entropies(model: Model) -> Callable:
  """Returns (models [M, ...], batch) -> the loss of each model on each example, [M, B].

  Models are in evaluation mode, and run sequentially: a batched product of M kernels is slow
  on a CPU.
  """

  def one(variables, batch):
    logits, _ = model.apply(variables, batch.x, mask=batch.mask)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)

  return lambda models, batch: lax.map(lambda variables: one(variables, batch), models)


def mean_over_rows(values: Callable, *, batch: int) -> Callable:
  """Returns a function that averages M values per example over one client's examples.

  Args:
    values: (given, minibatch) -> [M, B].
    batch: examples at a time, at most; the mean does not depend on it.

  Returns:
    (given, examples, client) -> [M]; zeros for a client without examples.
  """

  def mean(given, examples, client):
    width = min(batch, client.index.shape[0])
    rows = jnp.pad(client.index, (0, -client.index.shape[0] % width))

    def sums(i):
      minibatch = gather(examples, rows, i * width, width, client.size)
      return jnp.where(minibatch.mask[None], values(given, minibatch), 0).sum(axis=1)

    nothing = jnp.zeros(jax.eval_shape(sums, 0).shape)
    total = lax.fori_loop(
        0, -(-client.size // width), lambda i, total: total + sums(i), nothing)
    return total / jnp.maximum(client.size, 1)

  return mean


def logits(model: Model, variables: PyTree, batch: Batch) -> Array:
  """Returns the logits of a minibatch in evaluation mode: [B, C]."""
  return model.apply(variables, batch.x, mask=batch.mask)[0]


def score_batch(predict: Callable, batch: Batch) -> tuple[Array, Array]:
  """Returns correctness and loss of each example, [B] float32 both, by predict(batch) [B, C]."""
  predicted = predict(batch)
  loss = optax.softmax_cross_entropy_with_integer_labels(predicted, batch.y)
  return (predicted.argmax(-1) == batch.y).astype(jnp.float32), loss


def score_rows(model: Model, mapper: Mapper, variables: PyTree, examples: Examples,
               rows: Array, batch: int) -> list[Array]:
  """Scores one model on the examples at `rows` [T], in batches: correctness and loss, [T] each."""
  width = min(batch, len(rows))
  batches = jnp.pad(rows, (0, -len(rows) % width)).reshape(-1, width)

  def work(shared, wanted):
    variables, examples = shared
    minibatch = gather(examples, wanted, 0, width, width)
    return score_batch(partial(logits, model, variables), minibatch)

  scores = mapper.each(work, (variables, examples), batches)
  return [x.ravel()[:len(rows)] for x in scores]
