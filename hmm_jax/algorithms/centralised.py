"""Centralised: one model trains on all clients' rows pooled; the ceiling."""

from typing import NamedTuple

import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.client import mappers
from hmm_jax.client import participation as participate
from hmm_jax.types import Algorithm, Array, Local, Model, PyTree, Traffic


class CentralisedState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree


def centralised(model: Model, local: Local, *, mapper: mappers.Mapper) -> Algorithm:
  """Runs the local training, once a round, as if one client held every row.

  Args:
    model: the network.
    local: one client's training.
    mapper: how clients are mapped; there is one.
  """
  train = mappers.map_clients(local, mapper)

  def init(key, federation):
    del federation
    return CentralisedState(jnp.int32(0), model.init(key))

  def round(state, federation, key):
    stacked, _, cohort = train(
        state.variables, federation.examples, participate.pool(federation.clients), (), key)
    silent = {'messages_up': jnp.float32(0), 'messages_down': jnp.float32(0)}
    return (CentralisedState(state.round + 1, tree.take(stacked, 0)),
            {**participate.round_metrics(cohort), **silent})

  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=0, down=0))
