"""IFCA: clients are clustered by the model with the lowest loss on their examples.

  c_i     <- argmin_m f_i(theta_m)               over the M models, all of them received
  theta_i <- local steps of client i from theta_{c_i}
  theta_m <- sum_{i: c_i = m} n_i theta_i / sum_{i: c_i = m} n_i

The models have different initializations, as otherwise all losses would be equal. If one model
is best for all clients, the others are never trained: the paper restarts with other
initializations. A model without any examples in its cluster is unchanged. Weighting by number
of examples is our choice, so that one model is FedAvg: the paper's clients are of equal size.
BatchNorm statistics are averaged with their model.

Reference: Ghosh, Chung, Yin, Ramchandran. An Efficient Framework for Clustered Federated
  Learning. NeurIPS 2020. arXiv:2006.04088, algorithm 1 with model averaging.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling, scoring
from hmm_jax.client.initial import initial_models
from hmm_jax.registry import Method, Setting
from hmm_jax.types import Algorithm, Array, InputError, Local, Mapper, Model, PyTree, Traffic


class IFCAState(NamedTuple):
  round: Array  # [] int32
  models: PyTree  # [M, ...]
  cluster: Array  # [K] int32, the model that each client chose last


def ifca(model: Model, local: Local, *, models: int, mapper: Mapper,
         participation: int = 0, batch: int = 512) -> Algorithm:
  """Trains M models, each on the clients for which it has the lowest loss.

  A client that does not take part keeps its cluster. Before the first round all clients
  choose once, so that views are defined (our choice).

  Args:
    model: the network.
    local: one client's training.
    models: number of models, M.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all.
    batch: examples scored at a time, to choose a model.

  Raises:
    InputError: no model.
  """
  if models < 1:
    raise InputError(f'got models={models}; expected at least 1')
  average_loss = scoring.mean_over_rows(scoring.losses_of_models(model), batch=batch)
  size = model.nbytes

  def choose(received, examples, clients):
    best = lambda shared, client: jnp.argmin(average_loss(*shared, client))
    return mapper.each(best, (received, examples), clients, clients.size)

  def from_its_model(received, examples, client, cluster, key):
    trained, _, report = local(tree.take(received, cluster), examples, client, (), key)
    return trained, (), report

  train = mappers.mix_clients(from_its_model, mapper)

  def init(key, federation):
    started = initial_models(model, key, models)
    cluster = choose(started, federation.examples, federation.clients)
    return IFCAState(jnp.int32(0), started, cluster)

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    positions, clients = sampling.sample(federation.clients, participation, cohort_key)
    cluster = choose(state.models, federation.examples, clients)
    rows, taken = sampling.by_size_within(clients, cluster, models)
    mixed, _, cohort = train(
        rows, state.models, federation.examples, clients, cluster, local_key)
    metrics = sampling.round_metrics(cohort)
    return IFCAState(
        state.round + 1, jax.vmap(tree.where)(taken, mixed, state.models),
        state.cluster.at[positions].set(cluster)), {
            **metrics, 'messages_down': models * metrics['messages_down']}

  return Algorithm(init, round,
                   views=lambda state, _: {'clients': tree.take(state.models, state.cluster)},
                   traffic=Traffic(up=size, down=size),
                   gauges=lambda state: {'cluster': state.cluster.astype(jnp.float32)})


def build_ifca(parts: Parts, settings) -> Algorithm:
  return ifca(parts.model, parts.training(), models=settings.models,
              batch=parts.config.eval_batch, **parts.cohort)


METHOD = Method(
    'ifca', build_ifca,
    {'models': Setting(3, 'number of models', at_least=1, at_most=10**4)}, kind='personal',
    needs=('own examples',),
    summary='clients are clustered by the model with the lowest loss on their examples',
    paper='Ghosh et al. NeurIPS 2020. arXiv:2006.04088')
