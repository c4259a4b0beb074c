"""Server as client: the server takes part in every round, as a client with its own examples.

  x <- (sum_k n_k y_k + S y_s) / (sum_k n_k + S),   y the models after local training from x

over the m participants and the server's S examples.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.registry import Method
from hmm_jax.types import Algorithm, Array, Local, Mapper, Model, PyTree, Traffic


class ServerAsClientState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # x, the global model


def server_as_client(model: Model, local: Local, *, server: Callable, mapper: Mapper,
                     participation: int = 0) -> Algorithm:
  """Averages m of K clients and the server each round.

  Args:
    model: the network.
    local: one client's training.
    server: function made by `training.server_training`.
    mapper: how clients are mapped.
    participation: clients per round besides the server, m; 0 means all.
  """
  train = mappers.mix_clients(local, mapper)
  size = model.nbytes

  def init(key, federation):
    del federation
    return ServerAsClientState(jnp.int32(0), model.init(key))

  def round(state, federation, key):
    cohort_key, local_key, server_key = jax.random.split(key, 3)
    _, clients = sampling.sample(federation.clients, participation, cohort_key)
    mixed, _, cohort = train(sampling.by_size(clients)[None], state.variables,
                             federation.examples, clients, (), local_key)
    own, _, spent = server(state.variables, (), federation.server, server_key)
    rows = len(federation.server.examples.y)
    share = rows / (rows + clients.size.sum())
    variables = tree.add(tree.scale(1 - share, tree.take(mixed, 0)), tree.scale(share, own))
    return ServerAsClientState(state.round + 1, variables), {
        **sampling.round_metrics(cohort), **spent}

  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=size, down=size))


def build_server_as_client(parts: Parts, settings) -> Algorithm:
  del settings
  return server_as_client(parts.model, parts.training(), server=parts.server_sgd(), **parts.cohort)


METHOD = Method(
    'server_as_client', build_server_as_client, kind='hybrid', needs=('server examples',),
    summary='the server takes part in every round, as a client with its own examples')
