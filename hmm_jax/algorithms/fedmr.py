"""FedMR: client models are recombined by shuffling their layers, not averaged.

  a pool of m models w_1 .. w_m, initially copies of one; in every round
    slot i is sent to a random client:      w_i <- LocalSGD(w_i)
    w_glob = (1/m) sum_i w_i                unweighted; evaluated and deployed, never trained
    in the first stage:                     w_i <- w_glob
    afterwards, for every unit u:           w_i[u] <- w_pi_u(i)[u], pi_u a fresh permutation

A unit is a tensor (as in the released code, where each normalization statistic also has its
own permutation), a layer (as in the paper's text: all tensors of one module) or a segment of
consecutive tensors.

Reference: Hu, Yue, Xie, Chen, Huang, Wei, Lian, Liu, Chen. Is Aggregation the Only Choice?
  Federated Learning via Layer-wise Model Recombination. KDD 2024. arXiv:2305.10730. First
  as FedMR: Federated Learning via Model Recombination. arXiv:2208.07677.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.merging.recombine import layers, recombine, segments, tensors
from hmm_jax.registry import Method, Setting
from hmm_jax.types import Algorithm, Array, InputError, Local, Mapper, Model, PyTree, Traffic


class FedMRState(NamedTuple):
  round: Array  # [] int32
  pool: PyTree  # [m, ...], the models in the slots


def fedmr(model: Model, local: Local, *, mapper: Mapper, units: Callable,
          participation: int = 0, first_stage: int = 0, dropout: float = 0.0,
          select: Callable | None = None) -> Algorithm:
  """Recombines the models of a pool of m slots each round.

  Args:
    model: the network.
    local: one client's training.
    mapper: how clients are mapped.
    units: (model, variables) -> the units that are shuffled, from merging/recombine.py:
      `tensors`, `layers` or `segments`.
    participation: slots, as many as clients per round, m; 0 means all.
    first_stage: rounds of plain averaging before the first recombination.
    dropout: probability that a slot's model does not return from its client. Then the
      slot keeps its previous model, and only the others are recombined.
    select: (round, count) -> [count] probabilities that a unit is shuffled; it is averaged
      otherwise. None: all are shuffled. See `by_probability` and `central_band`.
  """
  train = mappers.map_clients(local, mapper, start_axis=0)
  shapes = model.shapes
  unit = units(model, shapes)
  count = 1 + max(jax.tree.leaves(unit))
  size = tree.nbytes(shapes)

  def init(key, federation):
    slots = participation or len(federation.clients.id)
    return FedMRState(jnp.int32(0), tree.repeat(model.init(key), slots))

  def round(state, federation, key):
    cohort_key, local_key, drop_key, shuffle_key = jax.random.split(key, 4)
    _, clients = sampling.shuffled(federation.clients, participation, cohort_key)
    trained, _, cohort = train(state.pool, federation.examples, clients, (), local_key)
    returned = jax.random.bernoulli(drop_key, 1 - dropout, (len(clients.id),))
    back = jax.vmap(tree.where)(returned, trained, state.pool)

    chance = select(state.round, count) if select else jnp.ones(count)
    chance = jnp.where(state.round < first_stage, 0, chance)
    pool = recombine(shuffle_key, back, unit, returned=returned, chance=chance)
    metrics = sampling.round_metrics(cohort)
    return FedMRState(state.round + 1, pool), {
        **metrics, 'messages_up': returned.sum(dtype=jnp.float32)}

  def views(state, federation):
    del federation
    return {'global': jax.tree.map(lambda x: x.mean(axis=0), state.pool)}

  return Algorithm(init, round, views=views, traffic=Traffic(up=size, down=size))


def by_probability(rounds: int, first_stage: int, frozen: float) -> Callable:
  """Shuffles each unit with a probability that grows from 0 to 1, an option of the first release.

  It is (t - first_stage) / (rounds * frozen), which reaches 1 after a share `frozen` of the run.
  """

  def select(t, count):
    return jnp.full(count, jnp.clip((t - first_stage) / (rounds * frozen), 0, 1))

  return select


def central_band(rounds: int, first_stage: int, frozen: float) -> Callable:
  """Shuffles the middle units of the network, a share that grows as in `by_probability`.

  Our interpretation of the first release: the band is centered in the order of the units.
  """
  share = by_probability(rounds, first_stage, frozen)

  def select(t, count):
    place = (jnp.arange(count) + 0.5) / count
    return (jnp.abs(2 * place - 1) <= share(t, count)).astype(jnp.float32)

  return select


SETTINGS = {
    'granularity': Setting(
        'tensor', 'the unit that is shuffled', choices=('tensor', 'layer', 'segment')),
    'segments': Setting(
        4, 'number of segments of consecutive tensors (segment); 1: whole models are shuffled',
        at_least=1),
    'first_stage': Setting(0, 'rounds of plain averaging before the first shuffle', at_least=0),
    'shuffle': Setting(
        'all', 'units that are shuffled, others are averaged: all, each with a growing '
        'probability, or a growing band of middle units', choices=('all', 'probability', 'band')),
    'frozen': Setting(
        1.0, 'share of the run until all units are shuffled (probability, band)', above=0),
    'dropout': Setting(0.0, "probability that a slot's model does not return from its client",
                       at_least=0, at_most=1),
}


def build_fedmr(parts: Parts, settings) -> Algorithm:
  """Builds FedMR.

  Raises:
    InputError: more segments than tensors.
  """
  rounds = parts.config.rounds
  units = {'tensor': tensors, 'layer': layers,
           'segment': segments(settings.segments)}[settings.granularity]
  growth = (rounds, settings.first_stage, settings.frozen)
  select = {'all': None, 'probability': by_probability(*growth),
            'band': central_band(*growth)}[settings.shuffle]
  made = fedmr(parts.model, parts.training(), units=units, first_stage=settings.first_stage,
               dropout=settings.dropout, select=select, **parts.cohort)
  return made._replace(length=rounds) if select else made


def check(config):
  """Checks that some round recombines models."""
  stage = config.fedmr.first_stage
  if stage >= config.rounds:
    raise InputError(f'got first_stage={stage}; expected fewer than rounds={config.rounds}, '
                     'as no round would recombine models')


METHOD = Method(
    'fedmr', build_fedmr, SETTINGS, check=check,
    summary='tensors are shuffled among the client models instead of averaged',
    paper='Hu et al. KDD 2024. arXiv:2305.10730')
