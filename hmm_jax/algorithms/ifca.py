"""IFCA: clients cluster themselves by the model that fits their rows best.

  c_i     <- argmin_m f_i(theta_m)               over the M models, all of them received
  theta_i <- local steps of client i from theta_{c_i}
  theta_m <- sum_{i: c_i = m} n_i theta_i / sum_{i: c_i = m} n_i

The models differ from the start, or no client could prefer one; if one fits everybody best
it takes all, and the paper restarts from others. One that nobody with rows takes stays.
Weighing by rows is our choice, so that one model is FedAvg: the paper's clients are of one
size. BatchNorm statistics go with the model they belong to.

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
  cluster: Array  # [K] int32, the model that each client took last


def ifca(model: Model, local: Local, *, models: int, mapper: Mapper,
         participation: int = 0, batch: int = 512) -> Algorithm:
  """Trains M models, each on the clients that it fits best.

  A client that does not take part keeps its cluster. Before the first round everybody
  chooses once, for the views (our choice).

  Args:
    model: the network.
    local: one client's training.
    models: M.
    mapper: how clients are mapped.
    participation: clients a round, m; 0 means all.
    batch: rows scored at a time, to choose by.

  Raises:
    InputError: no model.
  """
  if models < 1:
    raise InputError(f'got models={models}; expected at least 1')
  average_loss = scoring.mean_over_rows(scoring.cross_entropies(model), batch=batch)
  size = tree.nbytes(jax.eval_shape(model.init, jax.random.key(0)))

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
    'ifca', build_ifca, {'models': Setting(3, 'number of models', at_least=1)}, kind='personal',
    needs=('own examples',), summary='clients cluster themselves by the model of the lowest loss',
    paper='Ghosh et al. NeurIPS 2020. arXiv:2006.04088')
