"""Plays rounds of an algorithm, and the federated averaging that other methods contain."""

from functools import cache

import jax
import numpy as np
import optax
from reference import toys

from hmm_jax.algorithms import fedavg
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.local import local_training

LR = 0.3
OPTIMIZER = optax.sgd(LR, momentum=0.8)
FEDERATION = toys.federation((6, 3, 0, 8, 1))
compiled = cache(toys.jit)


def play(algorithm, rounds, *, federation=FEDERATION, state=None, program=None):
  """Returns the states from the start on, and the metrics of each round, on the host."""
  program = program or compiled(algorithm.round)
  state = algorithm.init(toys.key(0), federation) if state is None else state
  states, metrics = [host(state)], []
  for r in range(rounds):
    state, measured = program(state, federation, toys.key(r))
    states.append(host(state))
    metrics.append(host(measured))
  return states, metrics


def host(values):
  """Returns NumPy arrays, for nothing that tests do with them need be compiled."""
  return jax.tree.map(np.asarray, values)


def positions(metrics):
  """Returns the positions of each round's cohort."""
  return [[toys.IDS.index(i) for i in measured['cohort'].id.tolist()] for measured in metrics]


def training(network, **loop):
  """Returns training by cross-entropy in small batches."""
  return local_training(losses.supervised(network()), OPTIMIZER,
                        **{'batch': 2, 'epochs': 2} | loop)


@cache
def averaged(network=toys.norm, *, participation=3, weigh=sampling.by_size, rounds=2):
  """Returns what `play` does of federated averaging with that training."""
  return play(fedavg.fedavg(network(), training(network), mapper=mappers.one_by_one(),
                            participation=participation, weigh=weigh), rounds)
