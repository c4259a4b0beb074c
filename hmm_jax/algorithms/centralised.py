"""Centralised: one model trains on all clients' rows pooled; the ceiling."""

from typing import NamedTuple

import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.client import mappers
from hmm_jax.client import participation as participate
from hmm_jax.types import Algorithm, Array, Clients, Local, Model, PyTree, Traffic


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
        state.variables, federation.examples, pool(federation.clients), (), key)
    silent = {'messages_up': jnp.float32(0), 'messages_down': jnp.float32(0)}
    return (CentralisedState(state.round + 1, tree.take(stacked, 0)),
            {**participate.round_metrics(cohort), **silent})

  return Algorithm(init, round, views=lambda state: {'global': state.variables},
                   traffic=Traffic(up=0, down=0))


def pool(clients: Clients) -> Clients:
  """Merges all clients into one, whose id is 0: index [1, K N].

  Rows are sorted, so it does not matter who held which.
  """
  valid = jnp.arange(clients.index.shape[1])[None] < clients.size[:, None]
  padding = jnp.iinfo(jnp.int32).max
  index = jnp.sort(jnp.where(valid, clients.index, padding).ravel())
  index = jnp.where(index == padding, 0, index)
  return Clients(jnp.zeros(1, jnp.int32), index[None], clients.size.sum()[None])
