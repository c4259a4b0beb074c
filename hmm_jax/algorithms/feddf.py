"""FedDF: the clients' models are averaged, then their ensemble is distilled into the average.

  client k:   y_k <- LocalSGD(x; D_k)
  server:     x <- sum_k p_k y_k
              x <- Adam on KL(softmax(mean_k f(y_k)), softmax(f(x))) over its unlabeled examples

p_k = n_k / sum n over the participants. As in the paper, the learning rate has a cosine decay in
every round, and the target is the softmax of the mean logits.

Reference: Lin, Kong, Stich, Jaggi. Ensemble Distillation for Robust Model Fusion in Federated
  Learning. NeurIPS 2020. arXiv:2006.07242.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.registry import Method, Setting
from hmm_jax.server import objectives
from hmm_jax.types import Algorithm, Array, Local, Mapper, Model, PyTree, Traffic


class FedDFState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # x, the global model


def feddf(model: Model, local: Local, *, server: Callable, mapper: Mapper,
          participation: int = 0) -> Algorithm:
  """Averages m of K clients each round, then distills their ensemble into the average.

  Args:
    model: the network.
    local: one client's training.
    server: function made by `training.server_training`, with the surrogate `distil`.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all.
  """
  train = mappers.map_clients(local, mapper)
  size = model.nbytes

  def init(key, federation):
    del federation
    return FedDFState(jnp.int32(0), model.init(key))

  def round(state, federation, key):
    cohort_key, local_key, server_key = jax.random.split(key, 3)
    _, clients = sampling.sample(federation.clients, participation, cohort_key)
    models, _, cohort = train(
        state.variables, federation.examples, clients, (), local_key)
    mean = tree.mix(sampling.by_size(clients), models)
    variables, _, spent = server(mean, models, federation.server, server_key)
    return FedDFState(state.round + 1, variables), {
        **sampling.round_metrics(cohort), **spent}

  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=size, down=size))


def build_feddf(parts: Parts, settings) -> Algorithm:
  rate = optax.cosine_decay_schedule(settings.lr, parts.config.server.steps)
  server = parts.server_training(objectives.distill(parts.model), optax.adam(rate))
  return feddf(parts.model, parts.training(), server=server, **parts.cohort)


METHOD = Method(
    'feddf', build_feddf,
    {'lr': Setting(1e-3, 'learning rate of Adam, with cosine decay', above=0)},
    kind='hybrid', needs=('server examples', 'classes'),
    summary="the ensemble of local models is distilled into their mean on the server's inputs",
    paper='Lin et al. NeurIPS 2020. arXiv:2006.07242')
