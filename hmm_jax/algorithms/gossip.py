"""Gossip: agents train locally, average with their neighbors, and are merged once at the end.

  theta_k <- H local steps of agent k, with a private optimizer state
  theta   <- W_t theta                with W_t from the topology, under the schedule
  after the last round: theta is merged, by a uniform average or some rounds of gossip

Special cases are averaging in every round (a complete graph), one-shot merging (rate 0) and
local training (rate 0, no final merge).

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
from hmm_jax.client.initial import further_models
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
  private: PyTree  # the agents' optimizer states, never sent
  sent: Array  # [K] float32, models that each agent has sent so far
  received: Array  # [K] float32, models that each agent has received so far
  expected: Array  # [] float32, expected number of models sent so far, mean over agents


def gossip(model: Model, local: Local, *, topology: Topology, schedule: Schedule,
           mapper: Mapper, init_private: Callable, begin: Callable, share: Callable,
           final: tuple[Topology, int] | None, calibrate: Callable) -> Algorithm:
  """Trains K agents in every round and mixes their models by gossip.

  Args:
    model: the network.
    local: one agent's training, whose `extra` is kept between rounds: `continued_training`.
    topology: which agents communicate. An agent's position in it is the rank of its id.
    schedule: how often they communicate.
    mapper: how agents are mapped.
    init_private: (params) -> an agent's initial `extra`.
    begin: (model, key, clients) -> K initial models: `same_init` or `different_inits`.
    share: (variables) -> the collections that are sent and mixed: `everything` or
      `parameters`.
    final: the final merge, as a topology and a number of rounds; None: no final merge.
    calibrate: (variables, federation) -> variables; recalibrates the averaged statistics of
      a merged model, or keeps them.
  """
  train = mappers.map_clients(local, mapper, start_axis=0)
  shapes = model.shapes
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
    expected = jnp.where(dense, consensus.allreduce(len(clients.id)), topology.messages(rate))
    after = state._replace(
        round=state.round + 1, stacked=mixed, private=private, sent=state.sent + sent,
        received=state.received + received, expected=state.expected + expected)
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
    assert final
    graph, rounds = final
    # The final merge sends whole models, whatever `share` selects.
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
  """Initializes all agents with the same model."""
  return tree.repeat(model.init(key), len(clients.id))


def different_inits(model: Model, key: Key, clients: Clients) -> PyTree:
  """Initializes each agent with a different model, which depends on its id."""
  return further_models(model, jax.vmap(lambda i: jax.random.fold_in(key, i))(clients.id))


def everything(variables: PyTree) -> PyTree:
  """Selects parameters and normalization statistics to be sent."""
  return variables


def parameters(variables: PyTree) -> PyTree:
  """Selects parameters to be sent; each agent keeps its normalization statistics."""
  return {'params': variables['params']}


def _by_id(matrix: Array, clients: Clients) -> Array:
  """Permutes a topology's matrix from ranks of ids to positions of clients."""
  rank = jnp.argsort(jnp.argsort(clients.id))
  return matrix[rank][:, rank]


INITS = {'same': same_init, 'different': different_inits}
SHARES = {'mixed': everything, 'kept': parameters}
MERGE_EXAMPLES = {
    'train': lambda f: (sampling.pool(f.clients).index[0], f.clients.size.sum()),
    'validation': lambda f: (f.validation.rows, len(f.validation.rows)),
}
MOST_EXAMPLES = 10**7  # Largest number of examples that a merged model is recalibrated on.
SETTINGS = {
    'topology': Setting('pull', f'one of {", ".join(topologies.NAMES)}'),
    'weights': Setting(
        'metropolis', 'mixing weights of an undirected graph', choices=topologies.WEIGHTS),
    'degree': Setting(4, 'neighbors (regular); k of the Base-(k+1) graph (base)', at_least=1),
    'edge_probability': Setting(0.3, 'probability of an edge (erdos_renyi)', above=0, at_most=1),
    'graph_seed': Setting(0, 'seed of the random graphs (erdos_renyi, regular)', at_least=0),
    'rate': Setting(0.2, 'probability that an agent communicates in a round (pull, matching), or '
                    'that all agents do (other topologies)', at_least=0, at_most=1),
    'schedule': Setting(
        '', 'intervals that override the rate: constant:R linear:A:B cosine:A:B dense, each with '
        "@FROM:TO, such as 'constant:1@150:' or 'dense@80:90,dense@180:190'"),
    'start': Setting('different', "the agents' initial models", choices=INITS),
    'statistics': Setting(
        'mixed', "the agents' BatchNorm statistics: mixed by gossip, or kept by each agent",
        choices=SHARES),
    'final_merge': Setting('uniform', 'merge after the last round: none, uniform, or '
                           'TOPOLOGY:ROUNDS of gossip'),
    'merged_statistics': Setting('recalibrated', "the merged model's BatchNorm statistics",
                                 choices=('recalibrated', 'averaged')),
    'merge_data': Setting(
        'train', 'examples of all agents for recalibration', choices=MERGE_EXAMPLES),
    'merge_batches': Setting(
        32, 'minibatches of local.batch examples for recalibration', at_least=1, at_most=10**6),
}


def build_gossip(parts: Parts, settings) -> Algorithm:
  """Builds gossip with its topology, schedule and final merge.

  Raises:
    InputError: an invalid topology, schedule or final merge, or no examples for recalibration.
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
                     f'{MOST_EXAMPLES // parts.local.batch}, which are {MOST_EXAMPLES} examples')
  if settings.merge_data == 'validation' and not len(parts.federation.validation.rows):
    raise InputError('got merge_data=validation with partition.validation='
                     f'{parts.config.partition.validation}; expected validation examples to '
                     'recalibrate the merged model on, or merged_statistics=averaged')


def final_merge(name: str, graph: Callable) -> tuple[Topology, int] | None:
  """Parses gossip.final_merge: a topology and its number of rounds, or None.

  Raises:
    InputError: it is invalid.
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
