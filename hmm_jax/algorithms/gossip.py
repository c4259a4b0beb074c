"""Gossip: agents train alone, mix with their neighbours, and are merged once at the end.

  theta_k <- H local steps of agent k, whose optimiser state stays its own
  theta   <- W_t theta                with W_t from the topology, under the schedule
  at the end, once: theta <- theta merged, by a uniform average or some rounds of gossip

Averaging every round (a complete graph), one-shot merging (rate 0) and local training
(rate 0, no final merge) are settings of it.

Reference: Zhu, Zhang, Wang, Zhou, Wang. On the Surprising Effectiveness of a Single
  Global Merging in Decentralized Learning. ICLR 2026. arXiv:2507.06542.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import metrics, tree
from hmm_jax.client import mappers
from hmm_jax.client import participation as participate
from hmm_jax.types import Algorithm, Array, Clients, Key, Local, Model, PyTree, Traffic


class GossipState(NamedTuple):
  round: Array  # [] int32
  stacked: PyTree  # the agents' models
  private: PyTree  # what each keeps to itself: its optimiser state
  sent: Array  # [K] float32, models each agent has sent so far
  received: Array  # [K] float32
  expected: Array  # [] float32, models an agent was expected to send


def gossip(model: Model, local: Local, *, topology: NamedTuple, schedule: NamedTuple,
           mapper: mappers.Mapper, init_private: Callable, begin: Callable, share: Callable,
           final: tuple[NamedTuple, int] | None, calibrate: Callable) -> Algorithm:
  """Lets K agents gossip; each trains in every round.

  Args:
    model: the network.
    local: one agent's training, whose `extra` lives on: `continued_training`.
    topology: who may talk to whom, a `topology.Topology`. An agent's place in it is
      the rank of its id.
    schedule: how much they talk, a `schedule.Schedule`.
    mapper: how agents are mapped.
    init_private: (params) -> an agent's first `extra`.
    begin: (model, key, clients) -> K models: `same_start` or `different_starts`.
    share: (variables) -> the collections that are sent and mixed: `everything` or
      `parameters`.
    final: the final merge, so many rounds on a topology; None for none.
    calibrate: (variables, federation) -> variables with the statistics that a merged
      model needs; given the averaged ones.
  """
  train = mappers.map_clients(local, mapper, start_axis=0)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  message = tree.nbytes(share(shapes))

  def init(key, federation):
    stacked = begin(model, key, federation.clients)
    nothing = jnp.zeros(len(federation.clients.id), jnp.float32)
    return GossipState(jnp.int32(0), stacked, jax.vmap(init_private)(stacked['params']),
                       nothing, nothing, jnp.float32(0))

  def round(state, federation, key):
    mix_key, local_key = jax.random.split(key)
    clients = federation.clients
    trained, private, cohort = train(
        state.stacked, federation.examples, clients, state.private, local_key)

    rate, dense = schedule.at(state.round)
    matrix = jnp.where(dense, 1 / len(clients.id), topology.matrix(state.round, mix_key, rate))
    matrix = _by_id(matrix, clients)
    mixed = {**trained, **tree.mix(matrix, share(trained))}

    sent, received = metrics.messages(matrix)
    talk = jnp.where(dense, metrics.allreduce(len(clients.id)), topology.messages(rate))
    after = state._replace(
        round=state.round + 1, stacked=mixed, private=private, sent=state.sent + sent,
        received=state.received + received, expected=state.expected + talk)
    return after, {
        **participate.round_metrics(cohort), 'messages_up': sent.sum(),
        'messages_down': received.sum(),
        'realised/contraction': metrics.contraction(trained['params'], mixed['params']),
        'expected/contraction': jnp.where(dense, 1, topology.contraction(rate))}

  def views(state, federation):
    row = jnp.full(len(state.sent), 1 / len(state.sent))
    merged = calibrate(tree.mix(row, state.stacked), federation)
    return {'clients': state.stacked, 'locals': state.stacked, 'merged': merged}

  def gauges(state):
    every_round = jnp.maximum(state.round, 1) * metrics.allreduce(len(state.sent))
    return {
        'consensus': metrics.consensus(state.stacked['params']),
        'agent_sent/bytes': state.sent.mean() * message,
        'agent_sent_max/bytes': state.sent.max() * message,
        'agent_received/bytes': state.received.mean() * message,
        'agent_received_max/bytes': state.received.max() * message,
        'realised/share_of_allreduce': state.sent.mean() / every_round,
        'expected/share_of_allreduce': state.expected / every_round}

  def finish(state, federation, key):
    graph, rounds = final
    # Everything is merged, whatever was shared before.
    cost = tree.nbytes(shapes) / message

    def merge(step, state):
      matrix = graph.matrix(step, jax.random.fold_in(key, step), 1.0)
      matrix = _by_id(matrix, federation.clients)
      sent, received = metrics.messages(matrix)
      return state._replace(
          stacked=tree.mix(matrix, state.stacked), sent=state.sent + cost * sent,
          received=state.received + cost * received,
          expected=state.expected + cost * graph.messages(1.0))

    after = jax.lax.fori_loop(0, rounds, merge, state)
    merged = mapper.each(lambda data, one: calibrate(one, data), federation, after.stacked)
    return after._replace(stacked=merged), {
        'messages_up': (after.sent - state.sent).sum(),
        'messages_down': (after.received - state.received).sum()}

  return Algorithm(init, round, views=views, traffic=Traffic(up=message, down=message),
                   gauges=gauges, finish=finish if final else None, length=schedule.length)


def same_start(model: Model, key: Key, clients: Clients) -> PyTree:
  """Gives every agent one initial model."""
  return tree.repeat(model.init(key), len(clients.id))


def different_starts(model: Model, key: Key, clients: Clients) -> PyTree:
  """Gives each agent an initial model of its own, which follows its id."""
  return jax.vmap(lambda i: model.init(jax.random.fold_in(key, i)))(clients.id)


def everything(variables: PyTree) -> PyTree:
  """Shares parameters and normalisation statistics."""
  return variables


def parameters(variables: PyTree) -> PyTree:
  """Shares parameters; each agent keeps its normalisation statistics."""
  return {'params': variables['params']}


def _by_id(matrix: Array, clients: Clients) -> Array:
  """Arranges a topology's matrix by the positions of the clients."""
  rank = jnp.argsort(jnp.argsort(clients.id))
  return matrix[rank][:, rank]
