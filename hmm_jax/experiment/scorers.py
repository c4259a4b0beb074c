"""The compiled programs of an evaluation: models on examples, and clients' models on their own."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Sharding

from hmm_jax.client import local, mappers
from hmm_jax.client.scoring import outputs, over_batches, score_batch, score_rows
from hmm_jax.types import Mapper, Mixture, Model


class Programs(NamedTuple):
  """What is compiled once for each kind of view; examples are an argument of all.

  score:    (variables, examples, rows [T]) -> the scores of one model on each example, [T, ...].
  predict:  the same -> its predictions, [T, ...].
  score_clients: (models, examples, clients) -> sums of each client's scores by its own model,
            [K, ...]; `models` is stacked or a Mixture.
  predict_clients: the same -> its predictions and their padding, [K, N, ...].
  score_locals: (stacked, examples, rows [T]) -> mean scores of K models, [K, ...].
  """

  score: Callable
  predict: Callable
  score_clients: Callable
  predict_clients: Callable
  score_locals: Callable


def programs(model: Model, mapper: Mapper, sharding: Sharding, batch: int) -> Programs:
  """Makes the programs of a network.

  Args:
    model: the network.
    mapper: how batches and clients are mapped.
    sharding: of the results.
    batch: examples at a time.
  """
  task = model.task

  def score(variables, examples, rows):
    return score_rows(model, mapper, variables, examples, rows, batch)

  def predict(variables, examples, rows):
    one = lambda variables, batch: task.predict(outputs(model, variables, batch))
    return over_batches(mapper, one, variables, examples, rows, batch)

  def score_locals(stacked, examples, rows):
    def work(shared, variables):
      scores = score_rows(model, mappers.one_by_one(), variables, *shared, batch)
      return jax.tree.map(lambda x: x.mean(axis=0), scores)

    return mapper.each(work, (examples, rows), stacked)

  own = partial(_of_each_client, model, mapper)
  return Programs(*(jax.jit(program, out_shardings=sharding) for program in (
      score, predict, own(partial(_score_client, task, batch)),
      own(partial(_predict_client, task, batch)), score_locals)))


def _of_each_client(model, mapper, work):
  """Lifts work(predict, examples, client) over each client and its own model."""

  def lifted(models, examples, clients):
    mixture = isinstance(models, Mixture)
    shared, own = models if mixture else ((), models)

    def one(given, member):
      shared, examples = given
      own, client = member
      predict = partial(_mixed, model, shared, own) if mixture else partial(outputs, model, own)
      return work(predict, examples, client)

    return mapper.each(one, (shared, examples), (own, clients), clients.size)

  return lifted


def _mixed(model, models, weights, batch):
  """Returns the outputs of an ensemble of M models by a client's weights."""
  each = lax.map(lambda variables: outputs(model, variables, batch), models)
  return model.task.mix(each, weights)


def _score_client(task, batch, predict, examples, client):
  """Returns the sums of the scores over one client's examples, in batches."""
  width = min(batch, client.index.shape[0])
  rows = jnp.pad(client.index, (0, -client.index.shape[0] % width))

  def sums(i):
    minibatch = local.gather(examples, rows, i * width, width, client.size)
    masked = lambda x: jnp.where(minibatch.mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0).sum(axis=0)
    return jax.tree.map(masked, score_batch(task, predict(minibatch), minibatch))

  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(sums, 0))
  add = lambda i, total: jax.tree.map(jnp.add, total, sums(i))
  return lax.fori_loop(0, -(-client.size // width), add, nothing)


def _predict_client(task, batch, predict, examples, client):
  """Predicts one client's examples, in batches, and its padding: [N, ...]."""
  width = min(batch, client.index.shape[0])
  rows = jnp.pad(client.index, (0, -client.index.shape[0] % width))
  one = lambda i: task.predict(predict(
      local.gather(examples, rows, i * width, width, client.size)))
  made = lax.map(one, jnp.arange(len(rows) // width))
  return made.reshape(-1, *made.shape[2:])[:client.index.shape[0]]
