"""Server only: trains on the server's examples alone; a baseline without client data.

  x <- SGD from x on the server's examples
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import sampling
from hmm_jax.registry import Method
from hmm_jax.types import Algorithm, Array, InputError, Model, PyTree, Traffic


class ServerOnlyState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree


def server_only(model: Model, *, server: Callable) -> Algorithm:
  """Trains on the server's examples in each round, without communication.

  Args:
    model: the network.
    server: function made by `training.server_training`.
  """

  def init(key, federation):
    del federation
    return ServerOnlyState(jnp.int32(0), model.init(key))

  def round(state, federation, key):
    variables, cohort, spent = server(state.variables, (), federation.server, key)
    no_messages = {'messages_up': jnp.float32(0), 'messages_down': jnp.float32(0)}
    return ServerOnlyState(state.round + 1, variables), {
        **sampling.round_metrics(cohort), **no_messages, **spent}

  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=0, down=0))


def build_server_only(parts: Parts, settings) -> Algorithm:
  del settings
  return server_only(parts.model, server=parts.server_sgd())


def check(config):
  """Checks that the server trains on labels of the clients' task."""
  if config.server.surrogate != 'labels':
    raise InputError(f'got server.surrogate={config.server.surrogate} with algorithm=server_only; '
                     "expected labels, the only objective that trains the clients' task")


METHOD = Method(
    'server_only', build_server_only, kind='hybrid', needs=('server examples', 'all clients'),
    check=check, summary='the server trains on its own examples, without clients')
