"""Searches for the coefficients of a merge on the server's examples."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax.client import mappers
from hmm_jax.merging.search import minibatches
from hmm_jax.server.training import spent
from hmm_jax.types import Array, Examples, Key, Mapper, Objective, PyTree, Search, Server


class Fallback(NamedTuple):
  """Rule for selecting the result of a search, or falling back to the plain average.

  rows:   (server) -> indices of the examples that the search may read.
  choose: (losses [P]) -> the position of the selected candidate, by its held-out loss.
  accept: (found, average) -> bool, from the held-out losses of the two.
  """

  rows: Callable
  choose: Callable
  accept: Callable


class Guide(NamedTuple):
  """Settings of a search for merge coefficients on the server's examples.

  objective: loss on the server's examples.
  search:    the search algorithm.
  project:   (weights [A, U], usable) -> weights, projected onto the allowed ones.
  fallback:  `HELD_OUT` or `NEVER`.
  mapper:    how a minibatch is split over devices.
  steps:     minibatches per search.
  batch:     examples per minibatch.
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
  """Searches from the plain average; falls back to it if the result is not accepted.

  Args:
    guide: settings of the search.
    merge: (c) -> the parameters of a merge.
    statistics: BatchNorm statistics of all merges.
    average: coefficients c [A, U] of the plain average.
    scale: [A, U], ratio of weights to coefficients; 0 for unusable entries.
    models: clients' models [m, ...], for objectives whose targets are their predictions.
    server: the server's data.
    key: seeds random draws.

  Returns:
    Coefficients c [A, U], metrics, and records of the search.
  """
  batch_key, search_key = jax.random.split(key)
  examples = guide.objective.targets(models, server.examples)
  rows, usable = guide.fallback.rows(server), scale > 0
  context = guide.objective.context(
      {**statistics, 'params': merge(average)}, _take(examples, rows))

  def values(params, shared, batch):
    statistics, context = shared
    return guide.objective.rows({**statistics, 'params': params}, *batch, context)[0]

  mean = mappers.batch_mean(values, guide.mapper)

  def loss(c, some):
    return mean(merge(c), (statistics, context), _take(examples, some))

  def evaluate(c):
    return loss(c, server.held_out)

  def project(c):
    weights = guide.project(c * scale, usable)
    return jnp.where(usable, weights / jnp.where(usable, scale, 1), 0)

  batches = minibatches(batch_key, rows, batch=guide.batch, steps=guide.steps)
  trace = guide.search.run(loss, evaluate, average, batches, search_key, project)
  chosen = guide.fallback.choose(trace.held_out_loss)
  found, first, last = trace.c[chosen], evaluate(average), trace.held_out_loss[chosen]
  accepted = guide.fallback.accept(last, first)
  evaluations = (len(trace.step) + 1) * len(server.held_out)
  metrics = {
      'server/average_loss': first, 'server/found_loss': last,
      'server/fallback': 1 - accepted.astype(jnp.float32),
      **spent(gradients=guide.search.gradients * len(batches),
              forwards=guide.search.forwards * batches.size + evaluations)}
  return jnp.where(accepted, found, average), metrics, {'search': {
      'step': jnp.append(0, trace.step), 'loss': jnp.append(jnp.nan, trace.loss),
      'held_out_loss': jnp.append(first, trace.held_out_loss)}}


# Selects on examples that the search has not read; NaN counts as the largest loss.
HELD_OUT = Fallback(lambda server: server.search,
                    lambda losses: jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses)),
                    lambda found, average: found < average)
# Searches on all examples and takes the last candidate.
NEVER = Fallback(lambda server: jnp.arange(len(server.examples.y)),
                 lambda losses: len(losses) - 1,
                 lambda found, average: jnp.bool_(True))


def _take(examples: Examples, rows: Array) -> Examples:
  return jax.tree.map(lambda x: x[rows], examples)
