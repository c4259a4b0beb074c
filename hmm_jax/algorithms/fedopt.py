"""FedOpt: the mean client update is a pseudo-gradient for a server optimiser.

FedAvgM, FedAdam, FedYogi and FedAdagrad are this algorithm with optax's momentum,
adam, yogi and adagrad. Only parameters are optimised; BatchNorm statistics are
averaged (our choice: the paper is silent, and a signed step could make a variance
negative). optax's adam and yogi correct the bias of their moments, which the paper's
algorithm 2 does not.

Reference: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan. Adaptive
  Federated Optimization. ICLR 2021. arXiv:2003.00295.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.client import mappers
from hmm_jax.client import participation as participate
from hmm_jax.types import Algorithm, Array, Local, Model, PyTree, Traffic


class FedOptState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # the global model
  server: PyTree  # the server optimiser's state


def fedopt(model: Model, local: Local, *, server: optax.GradientTransformation,
           mapper: mappers.Mapper, participation: int = 0,
           weigh: Callable = participate.by_size) -> Algorithm:
  """Steps a server optimiser along start - mean(local), m of K clients a round.

  Args:
    model: the network.
    local: one client's training.
    server: any optax optimiser; sgd(1.0) gives FedAvg.
    mapper: how clients are mapped.
    participation: clients a round, m; 0 means all.
    weigh: (clients) -> [m] weights summing to 1.
  """
  train = mappers.mix_clients(local, mapper)
  size = tree.nbytes(jax.eval_shape(model.init, jax.random.key(0)))

  def init(key, federation):
    del federation
    variables = model.init(key)
    return FedOptState(jnp.int32(0), variables, server.init(variables['params']))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    _, clients = participate.sample(federation.clients, participation, cohort_key)
    mixed, _, cohort = train(
        weigh(clients)[None], state.variables, federation.examples, clients, (), local_key)
    mixed = tree.take(mixed, 0)

    params = state.variables['params']
    pseudo_gradient = tree.sub(params, mixed['params'])
    updates, server_state = server.update(pseudo_gradient, state.server, params)
    variables = {**mixed, 'params': optax.apply_updates(params, updates)}
    return (FedOptState(state.round + 1, variables, server_state),
            participate.round_metrics(cohort))

  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=size, down=size))
