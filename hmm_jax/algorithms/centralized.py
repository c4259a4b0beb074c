"""Centralized: one model is trained on the pooled examples of all clients; the upper bound.

  x <- local steps from x on all examples        as if one client held them
"""

from typing import NamedTuple

import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.registry import Method
from hmm_jax.types import Algorithm, Array, Local, Mapper, Model, PyTree, Traffic


class CentralizedState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree


def centralized(model: Model, local: Local, *, mapper: Mapper) -> Algorithm:
  """Runs local training in each round as if one client held all examples.

  Args:
    model: the network.
    local: one client's training.
    mapper: how clients are mapped; here there is one.
  """
  train = mappers.map_clients(local, mapper)

  def init(key, federation):
    del federation
    return CentralizedState(jnp.int32(0), model.init(key))

  def round(state, federation, key):
    stacked, _, cohort = train(
        state.variables, federation.examples, sampling.pool(federation.clients), (), key)
    no_messages = {'messages_up': jnp.float32(0), 'messages_down': jnp.float32(0)}
    return (CentralizedState(state.round + 1, tree.take(stacked, 0)),
            {**sampling.round_metrics(cohort), **no_messages})

  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=0, down=0))


def build_centralized(parts: Parts, settings) -> Algorithm:
  del settings
  return centralized(parts.model, parts.training(), mapper=parts.mapper)


METHOD = Method(
    'centralized', build_centralized, kind='bound', needs=('all clients',),
    summary='one model is trained on the examples of all clients: the upper bound')
