"""Local: every client trains alone, without communication, as if there were no federation.

  y_i <- local steps of client i from y_i        in the rounds that it takes part in
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.registry import Method
from hmm_jax.types import Algorithm, Array, Local, Mapper, Model, PyTree, Traffic


class LocalState(NamedTuple):
  round: Array  # [] int32
  stacked: PyTree  # the clients' models


def local(model: Model, local: Local, *, mapper: Mapper,
          participation: int = 0) -> Algorithm:
  """Trains each participant's own model further; all clients have the same initial model.

  Args:
    model: the network.
    local: one client's training.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all.
  """
  train = mappers.map_clients(local, mapper, start_axis=0)

  def init(key, federation):
    return LocalState(jnp.int32(0), tree.repeat(model.init(key), len(federation.clients.id)))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    positions, clients = sampling.sample(federation.clients, participation, cohort_key)
    trained, _, cohort = train(tree.take(state.stacked, positions), federation.examples,
                               clients, (), local_key)
    stacked = tree.put(state.stacked, positions, trained)
    no_messages = {'messages_up': jnp.float32(0), 'messages_down': jnp.float32(0)}
    return (LocalState(state.round + 1, stacked),
            {**sampling.round_metrics(cohort), **no_messages})

  def views(state, federation):
    del federation
    return {'clients': state.stacked, 'locals': state.stacked}

  return Algorithm(init, round, views=views, traffic=Traffic(up=0, down=0), stacks=('stacked',))


def build_local(parts: Parts, settings) -> Algorithm:
  del settings
  return local(parts.model, parts.training(), **parts.cohort)


METHOD = Method(
    'local', build_local, kind='bound',
    summary='each client trains alone, as without a federation')
