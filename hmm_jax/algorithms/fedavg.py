"""FedAvg: local training, then the weighted mean of the models.

  y_i <- local steps of client i from x
  x   <- sum_i n_i y_i / sum_i n_i               over the m participants

FedProx is this algorithm with a proximal term in the local loss.

Reference: McMahan, Moore, Ramage, Hampson, Agueera y Arcas. Communication-Efficient
  Learning of Deep Networks from Decentralized Data. AISTATS 2017. arXiv:1602.05629.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import WEIGHTS, WEIGHTS_SETTING, Parts
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.registry import Method, Setting
from hmm_jax.types import Algorithm, Array, Local, Mapper, Model, PyTree, Traffic


class FedAvgState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # the global model


def fedavg(model: Model, local: Local, *, mapper: Mapper, participation: int = 0,
           weigh: Callable = sampling.by_size) -> Algorithm:
  """Averages m of K clients each round.

  Args:
    model: the network.
    local: one client's training.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all.
    weigh: (clients) -> [m] weights summing to 1: `by_size` or `uniform`.
  """
  train = mappers.mix_clients(local, mapper)
  size = model.nbytes

  def init(key, federation):
    del federation
    return FedAvgState(jnp.int32(0), model.init(key))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    _, clients = sampling.sample(federation.clients, participation, cohort_key)
    mixed, _, cohort = train(
        weigh(clients)[None], state.variables, federation.examples, clients, (), local_key)
    metrics = sampling.round_metrics(cohort)
    return FedAvgState(state.round + 1, tree.take(mixed, 0)), metrics

  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=size, down=size))


def build_fedavg(parts: Parts, settings) -> Algorithm:
  return fedavg(parts.model, parts.training(), weigh=WEIGHTS[settings.weights], **parts.cohort)


def build_fedprox(parts: Parts, settings) -> Algorithm:
  train = parts.training(losses.proximal(parts.plain_loss(), settings.mu))
  return fedavg(parts.model, train, weigh=WEIGHTS[settings.weights], **parts.cohort)


FEDAVG = Method(
    'fedavg', build_fedavg, {'weights': WEIGHTS_SETTING},
    summary='the weighted mean of the local models',
    paper='McMahan et al. AISTATS 2017. arXiv:1602.05629')
FEDPROX = Method(
    'fedprox', build_fedprox,
    {'mu': Setting(0.01, 'weight of the proximal term', at_least=0), 'weights': WEIGHTS_SETTING},
    needs=('no prox',), summary='FedAvg with a proximal term in the local loss',
    paper='Li et al. MLSys 2020. arXiv:1812.06127')
