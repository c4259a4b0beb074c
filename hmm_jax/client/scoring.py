"""Evaluation of models on examples: the loss and what the task scores."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax.client.local import gather
from hmm_jax.types import Array, Batch, Examples, Mapper, Model, PyTree, Task


def losses_of_models(model: Model) -> Callable:
  """Returns (models [M, ...], batch) -> the loss of each model on each example, [M, B].

  Models are in evaluation mode, and run sequentially: a batched product of M kernels is slow
  on a CPU.
  """

  def one(variables, batch):
    return model.task.loss(outputs(model, variables, batch), batch.y)

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


def outputs(model: Model, variables: PyTree, batch: Batch) -> Array:
  """Returns the outputs of a minibatch in evaluation mode: [B, C]."""
  return model.apply(variables, batch.x, mask=batch.mask)[0]


def score_batch(task: Task, predicted: Array, batch: Batch) -> dict[str, Array]:
  """Returns the loss of each example and its scores, float32 [B] or [B, C], of given outputs."""
  return {'loss': task.loss(predicted, batch.y), **task.scores(predicted, batch.y)}


def over_batches(mapper: Mapper, score: Callable, variables: PyTree, examples: Examples,
                 rows: Array, batch: int) -> PyTree:
  """Computes score(variables, minibatch), of [B, ...], for the examples at `rows` [T]: [T, ...]."""
  width = min(batch, len(rows))
  batches = jnp.pad(rows, (0, -len(rows) % width)).reshape(-1, width)

  def work(shared, wanted):
    variables, examples = shared
    return score(variables, gather(examples, wanted, 0, width, width))

  scores = mapper.each(work, (variables, examples), batches)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:len(rows)], scores)


def score_rows(model: Model, mapper: Mapper, variables: PyTree, examples: Examples,
               rows: Array, batch: int) -> dict[str, Array]:
  """Scores one model on the examples at `rows` [T], in batches: {name: [T] or [T, C]}."""
  score = lambda variables, batch: score_batch(
      model.task, outputs(model, variables, batch), batch)
  return over_batches(mapper, score, variables, examples, rows, batch)
