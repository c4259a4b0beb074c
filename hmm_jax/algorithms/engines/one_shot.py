"""One-shot merging: clients train alone from one initial model, then the models are merged once.

  theta_k <- LocalSGD(theta_0; D_k) for all rounds
  finish:  theta <- merge(theta_0, theta_1 .. theta_K)

With `every`, models are also merged periodically, and the clients continue from the merge.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.client import mappers, sampling
from hmm_jax.registry import Setting
from hmm_jax.types import Algorithm, Array, InputError, Local, Mapper, Model, PyTree, Traffic


class OneShotState(NamedTuple):
  round: Array  # [] int32
  base: PyTree  # the last merged model, before the first merge the initial model
  stacked: PyTree  # the clients' models [K, ...]
  merged: Array  # [] int32, the round after which `base` was merged
  facts: dict  # diagnostics of the last merge, float32 scalars


def one_shot(model: Model, local: Local, *, mapper: Mapper, merge: Callable,
             every: int = 0) -> Algorithm:
  """Trains all K clients independently, and merges their models at the end.

  Between merges the view `global` is the clients' average, weighted by number of examples.

  Args:
    model: the network.
    local: one client's training.
    mapper: how clients are mapped.
    merge: (base, stacked, federation, key) -> (variables, {name: scalar}).
    every: rounds between merges, from which the clients continue; 0: one merge at the end.

  Raises:
    InputError: a negative `every`.
  """
  if every < 0:
    raise InputError(f'got every={every}; expected 0 (one merge at the end) or more rounds')
  train = mappers.map_clients(local, mapper, start_axis=0)
  size = model.nbytes

  def init(key, federation):
    base = model.init(key)
    stacked = tree.repeat(base, len(federation.clients.id))
    _, facts = jax.eval_shape(merge, base, stacked, federation, key)
    return OneShotState(jnp.int32(0), base, stacked, jnp.int32(0), tree.zeros(facts))

  def merge_now(state, federation, key):
    base, facts = merge(state.base, state.stacked, federation, key)
    return state._replace(base=base, merged=state.round, facts=facts)

  def merge_and_continue(state, federation, key):
    state = merge_now(state, federation, key)
    return state._replace(stacked=tree.repeat(state.base, len(federation.clients.id)))

  def round(state, federation, key):
    local_key, merge_key = jax.random.split(key)
    clients = federation.clients
    stacked, _, cohort = train(state.stacked, federation.examples, clients, (), local_key)
    state = state._replace(round=state.round + 1, stacked=stacked)
    sent = jnp.float32(0)
    if every:
      due = state.round % every == 0
      state = lax.cond(
          due, merge_and_continue, lambda state, *_: state, state, federation, merge_key)
      sent = due * jnp.float32(len(clients.id))
    return state, {
        **sampling.round_metrics(cohort), 'messages_up': sent, 'messages_down': sent}

  def views(state, federation):
    average = tree.mix(sampling.by_size(federation.clients), state.stacked)
    now = state.round == state.merged
    return {'global': tree.where(now, state.base, average), 'locals': state.stacked}

  def finish(state, federation, key):
    due = state.round > state.merged
    state = lax.cond(due, merge_now, lambda state, *_: state, state, federation, key)
    return state, {'messages_up': due * jnp.float32(len(federation.clients.id)),
                   'messages_down': jnp.float32(0)}

  return Algorithm(init, round, views=views, traffic=Traffic(up=size, down=size),
                   gauges=lambda state: state.facts, finish=finish)


SETTINGS = {'every': Setting(0, 'rounds between merges; 0: one merge at the end', at_least=0)}
