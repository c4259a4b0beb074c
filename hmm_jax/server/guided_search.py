"""What a server does with its rows: it searches for a merge's coefficients, or trains."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax.client import mappers
from hmm_jax.merging.search import minibatches
from hmm_jax.server.training import spent
from hmm_jax.types import Array, Examples, Key, Mapper, Objective, PyTree, Search, Server


class Fallback(NamedTuple):
  """What is taken of a search.

  rows:   (server) -> the rows that it may read.
  choose: (judged [P]) -> which of its marks, by the losses on held-out rows.
  accept: (found, average) -> bool, by these losses too.
  """

  rows: Callable
  choose: Callable
  accept: Callable


class Guide(NamedTuple):
  """How the server's rows find the coefficients of a merge.

  objective: on the server's examples.
  search:    how they are searched.
  project:   (weights [A, U], usable) -> weights, back to those that are allowed.
  fallback:  `HELD_OUT` or `NEVER`.
  mapper:    of the rows of a minibatch over devices.
  steps:     minibatches of a search.
  batch:     rows in each.
  """

  objective: Objective
  search: Search
  project: Callable
  fallback: Fallback
  mapper: Mapper
  steps: int
  batch: int


def follow(guide: Guide, merge: Callable, statistics: PyTree, average: Array, scale: Array,
           models: PyTree, server: Server, key: Key) -> tuple[Array, dict, dict]:
  """Searches from the average; falls back to it where what was found is not accepted.

  Args:
    guide: how.
    merge: (c) -> the parameters of a merge.
    statistics: of every merge.
    average: c [A, U] of the plain average.
    scale: [A, U], of weights over coefficients; 0 for what can't be used.
    models: [m, ...] of the clients, for surrogates that learn from them.
    server: its rows.
    key: of all draws.

  Returns:
    c [A, U], metrics, and records of the search.
  """
  batch_key, search_key = jax.random.split(key)
  examples = guide.objective.targets(models, server.examples)
  rows, usable = guide.fallback.rows(server), scale > 0
  context = guide.objective.context(
      {**statistics, 'params': merge(average)}, _rows(examples, rows))

  def values(params, shared, batch):
    statistics, context = shared
    return guide.objective.rows({**statistics, 'params': params}, *batch, context)[0]

  mean = mappers.batch_mean(values, guide.mapper)

  def loss(c, some):
    return mean(merge(c), (statistics, context), _rows(examples, some))

  def judge(c):
    return loss(c, server.held_out)

  def project(c):
    weights = guide.project(c * scale, usable)
    return jnp.where(usable, weights / jnp.where(usable, scale, 1), 0)

  batches = minibatches(batch_key, rows, batch=guide.batch, steps=guide.steps)
  trace = guide.search.run(loss, judge, average, batches, search_key, project)
  mark = guide.fallback.choose(trace.judged)
  found, first, last = trace.c[mark], judge(average), trace.judged[mark]
  accepted = guide.fallback.accept(last, first)
  judged = (len(trace.step) + 1) * len(server.held_out)
  metrics = {
      'server/average_loss': first, 'server/found_loss': last,
      'server/fallback': 1 - accepted.astype(jnp.float32),
      **spent(gradients=guide.search.gradients * len(batches),
              forwards=guide.search.forwards * batches.size + judged)}
  return jnp.where(accepted, found, average), metrics, {'search': {
      'step': jnp.append(0, trace.step), 'loss': jnp.append(jnp.nan, trace.loss),
      'held_out_loss': jnp.append(first, trace.judged)}}


# Rows that no search has read decide; a loss that is not a number is not lower.
HELD_OUT = Fallback(lambda server: server.search,
                    lambda judged: jnp.argmin(jnp.where(jnp.isnan(judged), jnp.inf, judged)),
                    lambda found, average: found < average)
# All rows may be read, and where the search ends is taken.
NEVER = Fallback(lambda server: jnp.arange(len(server.examples.y)),
                 lambda judged: len(judged) - 1,
                 lambda found, average: jnp.bool_(True))


def _rows(examples: Examples, rows: Array) -> Examples:
  return jax.tree.map(lambda x: x[rows], examples)
