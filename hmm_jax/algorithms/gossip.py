"""Gossip: agents train alone, mix with their neighbors, and are merged once at the end.

  theta_k <- H local steps of agent k, whose optimizer state stays its own
  theta   <- W_t theta                with W_t from the topology, under the schedule
  at the end, once: theta <- theta merged, by a uniform average or some rounds of gossip

Averaging every round (a complete graph), one-shot merging (rate 0) and local training
(rate 0, no final merge) are settings of it.

Reference: Zhu, Zhang, Wang, Zhou, Wang. On the Surprising Effectiveness of a Single
  Global Merging in Decentralized Learning. ICLR 2026. arXiv:2507.06542.
"""

from collections.abc import Callable
from functools import partial
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.client.local import continued_training
from hmm_jax.decentralized import consensus
from hmm_jax.decentralized import topology as topologies
from hmm_jax.decentralized.schedule import schedule as read_schedule
from hmm_jax.merging.batch_norm.recalibrate import calibration
from hmm_jax.registry import Method, Setting
from hmm_jax.types import (
  Algorithm,
  Array,
  Clients,
  InputError,
  Key,
  Local,
  Mapper,
  Model,
  PyTree,
  Schedule,
  Topology,
  Traffic,
)


class GossipState(NamedTuple):
  round: Array  # [] int32
  stacked: PyTree  # the agents' models
  private: PyTree  # what each keeps to itself: its optimizer state
  sent: Array  # [K] float32, models each agent has sent so far
  received: Array  # [K] float32
  expected: Array  # [] float32, models an agent was expected to send


def gossip(model: Model, local: Local, *, topology: Topology, schedule: Schedule,
           mapper: Mapper, init_private: Callable, begin: Callable, share: Callable,
           final: tuple[Topology, int] | None, calibrate: Callable) -> Algorithm:
  """Lets K agents gossip; each trains in every round.

  Args:
    model: the network.
    local: one agent's training, whose `extra` lives on: `continued_training`.
    topology: which agents communicate. An agent's place in it is the rank of its id.
    schedule: how much they communicate.
    mapper: how agents are mapped.
    init_private: (params) -> an agent's first `extra`.
    begin: (model, key, clients) -> K models: `same_init` or `different_inits`.
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

    sent, received = consensus.messages(matrix)
    talk = jnp.where(dense, consensus.allreduce(len(clients.id)), topology.messages(rate))
    after = state._replace(
        round=state.round + 1, stacked=mixed, private=private, sent=state.sent + sent,
        received=state.received + received, expected=state.expected + talk)
    return after, {
        **sampling.round_metrics(cohort), 'messages_up': sent.sum(),
        'messages_down': received.sum(),
        'realised/contraction': consensus.contraction(trained['params'], mixed['params']),
        'expected/contraction': jnp.where(dense, 1, topology.contraction(rate))}

  def views(state, federation):
    row = jnp.full(len(state.sent), 1 / len(state.sent))
    merged = calibrate(tree.mix(row, state.stacked), federation)
    return {'clients': state.stacked, 'locals': state.stacked, 'merged': merged}

  def gauges(state):
    every_round = jnp.maximum(state.round, 1) * consensus.allreduce(len(state.sent))
    return {
        'consensus': consensus.consensus(state.stacked['params']),
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
      sent, received = consensus.messages(matrix)
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


def same_init(model: Model, key: Key, clients: Clients) -> PyTree:
  """Gives every agent one initial model."""
  return tree.repeat(model.init(key), len(clients.id))


def different_inits(model: Model, key: Key, clients: Clients) -> PyTree:
  """Gives each agent an initial model of its own, which follows its id."""
  return jax.vmap(lambda i: model.init(jax.random.fold_in(key, i)))(clients.id)


def everything(variables: PyTree) -> PyTree:
  """Shares parameters and normalization statistics."""
  return variables


def parameters(variables: PyTree) -> PyTree:
  """Shares parameters; each agent keeps its normalization statistics."""
  return {'params': variables['params']}


def _by_id(matrix: Array, clients: Clients) -> Array:
  """Arranges a topology's matrix by the positions of the clients."""
  rank = jnp.argsort(jnp.argsort(clients.id))
  return matrix[rank][:, rank]


INITS = {'same': same_init, 'different': different_inits}
SHARES = {'mixed': everything, 'kept': parameters}
MERGE_EXAMPLES = {
    'train': lambda f: (sampling.pool(f.clients).index[0], f.clients.size.sum()),
    'validation': lambda f: (f.validation.rows, len(f.validation.rows)),
}
MOST_EXAMPLES = 10**7  # The most that a merged model is recalibrated on.
SETTINGS = {
    'topology': Setting('pull', f'one of {", ".join(topologies.NAMES)}'),
    'weights': Setting('metropolis', 'of the edges of an undirected graph', choices=topologies.WEIGHTS),
    'degree': Setting(4, 'neighbors (regular); k of the Base-(k+1) graph (base)', at_least=1),
    'edge_probability': Setting(0.3, 'probability of an edge (erdos_renyi)', above=0, at_most=1),
    'graph_seed': Setting(0, 'seed of the random graphs (erdos_renyi, regular)', at_least=0),
    'rate': Setting(0.2, 'probability that an agent (pull, matching), or all agents at once, '
                    'communicate in a round', at_least=0, at_most=1),
    'schedule': Setting('', 'pieces over that rate: constant:R linear:A:B cosine:A:B dense, each with '
                        "@FROM:TO, such as 'constant:1@150:' or 'dense@80:90,dense@180:190'"),
    'start': Setting('different', "the agents' initial models", choices=INITS),
    'statistics': Setting('mixed', "the agents' BatchNorm statistics in gossip", choices=SHARES),
    'final_merge': Setting('uniform', 'none, uniform, or TOPOLOGY:ROUNDS'),
    'merged_statistics': Setting('recalibrated', "the merged model's BatchNorm statistics",
                                 choices=('recalibrated', 'averaged')),
    'merge_data': Setting('train', 'examples of all agents to recalibrate on', choices=MERGE_EXAMPLES),
    'merge_batches': Setting(32, 'minibatches of local.batch examples to recalibrate on', at_least=1),
}


def build_gossip(parts: Parts, settings) -> Algorithm:
  """Builds gossip with its topology, schedule and final merge.

  Raises:
    InputError: one of them is impossible, or there is no data to recalibrate on.
  """
  graph = partial(
      topologies.topology, agents=parts.clients, weights=settings.weights, degree=settings.degree,
      edge_probability=settings.edge_probability, seed=settings.graph_seed)
  topology = graph(settings.topology)
  recalibrates = settings.merged_statistics == 'recalibrated'
  if recalibrates:
    _check_merge_examples(parts, settings)
  calibrate = calibration(
      parts.model, MERGE_EXAMPLES[settings.merge_data], batches=settings.merge_batches,
      batch=parts.local.batch) if recalibrates else lambda variables, _: variables
  made = gossip(
      parts.model, parts.training(make=continued_training), topology=topology,
      schedule=read_schedule(settings.schedule, rate=settings.rate, rounds=parts.config.rounds,
                             max_rate=topology.max_rate),
      mapper=parts.mapper, init_private=parts.optimizer().init, begin=INITS[settings.start],
      share=SHARES[settings.statistics], final=final_merge(settings.final_merge, graph),
      calibrate=calibrate)
  over = [('schedule over that rate', settings.schedule)] if settings.schedule else []
  return made._replace(facts=(*topologies.describe(topology, settings.rate), *over))


def _check_merge_examples(parts, settings):
  if settings.merge_batches * parts.local.batch > MOST_EXAMPLES:
    raise InputError(f'got merge_batches={settings.merge_batches}; expected at most '
                     f'{MOST_EXAMPLES // parts.local.batch}, {MOST_EXAMPLES} examples')
  if settings.merge_data == 'validation' and not len(parts.federation.validation.rows):
    raise InputError('got merge_data=validation with partition.validation='
                     f'{parts.config.partition.validation}; expected examples to recalibrate the '
                     'merged model on, or merged_statistics=averaged')


def final_merge(name: str, graph: Callable) -> tuple[Topology, int] | None:
  """Reads gossip.final_merge: a topology and its number of rounds, or None.

  Raises:
    InputError: it can't be read.
  """
  if name == 'none':
    return None
  if name == 'uniform':
    return graph('complete'), 1
  found = re.fullmatch(r'(.+):0*([1-9]\d{0,3})', name)
  if not found:
    raise InputError(f'got final_merge={name}; expected none, uniform or TOPOLOGY:ROUNDS '
                     'with 1 to 9999 rounds, such as exponential:5')
  try:
    return graph(found[1]), int(found[2])
  except InputError as error:
    raise InputError(f'got final_merge={name}: {error}') from error


METHOD = Method(
    'gossip', build_gossip, SETTINGS, kind='decentralized', needs=('all clients',),
    summary='agents average with their neighbors, and are merged once at the end',
    paper='Zhu et al. ICLR 2026. arXiv:2507.06542')
