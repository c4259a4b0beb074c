"""FedOpt: the mean client update is a pseudo-gradient for a server optimizer.

  y_i <- local steps of client i from x
  d   <- sum_i n_i (y_i - x) / sum_i n_i         over the m participants
  x   <- a step of the server's optimizer from x with the gradient -d

FedAvgM, FedAdam and FedYogi are this algorithm with optax's momentum, adam and yogi;
`adagrad` is FedAdagrad's own, below. Only parameters are optimized; BatchNorm statistics
are averaged (our choice: the paper does not specify it, and an optimizer step could make
a variance negative). optax's adam and yogi start v at 0 and 1e-6, not at eps^2, and
correct the bias of their moments, which the paper's algorithm 2 does not.

Reference: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan. Adaptive
  Federated Optimization. ICLR 2021. arXiv:2003.00295.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.algorithms.parts import WEIGHTS, WEIGHTS_SETTING, Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.client.optimizers import named_optimizer
from hmm_jax.registry import Method, Setting
from hmm_jax.types import Algorithm, Array, Local, Mapper, Model, PyTree, Traffic


class FedOptState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # the global model
  server: PyTree  # the server optimizer's state


def fedopt(model: Model, local: Local, *, server: optax.GradientTransformation,
           mapper: Mapper, participation: int = 0,
           weigh: Callable = sampling.by_size) -> Algorithm:
  """Applies a server optimizer to the pseudo-gradient start - mean(local), of m of K clients.

  Args:
    model: the network.
    local: one client's training.
    server: any optax optimizer; sgd(1.0) gives FedAvg.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all.
    weigh: (clients) -> [m] weights summing to 1.
  """
  train = mappers.mix_clients(local, mapper)
  size = model.nbytes

  def init(key, federation):
    del federation
    variables = model.init(key)
    return FedOptState(jnp.int32(0), variables, server.init(variables['params']))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    _, clients = sampling.sample(federation.clients, participation, cohort_key)
    mixed, _, cohort = train(
        weigh(clients)[None], state.variables, federation.examples, clients, (), local_key)
    mixed = tree.take(mixed, 0)

    params = state.variables['params']
    pseudo_gradient = tree.sub(params, mixed['params'])
    updates, server_state = server.update(pseudo_gradient, state.server, params)
    variables = {**mixed, 'params': optax.apply_updates(params, updates)}
    return (FedOptState(state.round + 1, variables, server_state),
            sampling.round_metrics(cohort))

  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=size, down=size))


def adagrad(learning_rate: float, eps: float) -> optax.GradientTransformation:
  """Returns the server optimizer of FedAdagrad.

    v <- v + g^2,  theta <- theta - learning_rate g / (sqrt(v) + eps)

  v starts at eps^2, the least that the paper's algorithm 2 allows; optax's adagrad starts it at
  0.1, for gradients that are larger than the update of a round, and has eps in the root. Without a
  first moment, as Adagrad has none (our choice: the algorithm leaves beta_1 open).
  """

  def init(params):
    return jax.tree.map(lambda x: jnp.full_like(x, eps**2), params)

  def update(updates, state, params=None):
    del params
    v = jax.tree.map(lambda v, g: v + jnp.square(g), state, updates)
    # Without eps, what has never moved stays.
    step = lambda v, g: jnp.where(v > 0, -learning_rate * g / (jnp.sqrt(v) + eps), 0)
    return jax.tree.map(step, v, updates), v

  return optax.GradientTransformation(init, update)


SETTINGS = {
    'optimizer': Setting('adam', 'an optax optimizer; it gets the settings that it accepts'),
    'lr': Setting(0.01, 'learning rate of the server', above=0),
    'momentum': Setting(0.9, 'momentum, for optimizers that have it', at_least=0, below=1),
    'b1': Setting(0.9, 'decay of the first moment', at_least=0, below=1),
    'b2': Setting(0.99, 'decay of the second moment', at_least=0, below=1),
    'eps': Setting(1e-3, 'added to the denominator', at_least=0),
    'weights': WEIGHTS_SETTING,
}


def server_optimizer(settings) -> optax.GradientTransformation:
  """Makes the server's optimizer of the settings; raises InputError for an unknown one."""
  if settings.optimizer == 'adagrad':
    return adagrad(settings.lr, settings.eps)
  return named_optimizer('fedopt.optimizer', settings.optimizer,
                         dict(settings, learning_rate=settings.lr))


def build_fedopt(parts: Parts, settings) -> Algorithm:
  return fedopt(parts.model, parts.training(), server=server_optimizer(settings),
                weigh=WEIGHTS[settings.weights], **parts.cohort)


METHOD = Method(
    'fedopt', build_fedopt, SETTINGS,
    summary='the mean client update is the pseudo-gradient of a server optimizer',
    paper='Reddi et al. ICLR 2021. arXiv:2003.00295')
