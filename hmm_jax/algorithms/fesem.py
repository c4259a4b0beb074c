"""FeSEM: clients are clustered by the center that is nearest to their trained model.

  theta_i <- local steps of client i from mu_{c_i}
  c_i     <- argmin_m ||theta_i - mu_m||^2                over the parameters
  mu_m    <- sum_{i: c_i = m} n_i theta_i / sum_{i: c_i = m} n_i

All centers are initialized as one model, and clients are first assigned to them at random, in
equal numbers (our choice, which the paper leaves open): with different initializations clients
would never change centers, as these are farther apart than training moves a model.
A center whose clients have no examples is unchanged. Weighting by number of examples is our
choice, so that one center is FedAvg. BatchNorm statistics are averaged with their center and
excluded from distances (our choice).

Reference: Long, Xie, Shen, Zhou, Wang, Jiang. Multi-center Federated Learning: Clients
  Clustering for Better Personalization. World Wide Web 2023. arXiv:2005.01026.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.registry import Method, Setting
from hmm_jax.types import (
  Algorithm,
  Array,
  Clients,
  InputError,
  Key,
  Local,
  Mapper,
  Model,
  PyTree,
  Traffic,
)


class FeSEMState(NamedTuple):
  round: Array  # [] int32
  centers: PyTree  # [M, ...]
  cluster: Array  # [K] int32, the center that each client belongs to


def fesem(model: Model, local: Local, *, models: int, mapper: Mapper,
          participation: int = 0) -> Algorithm:
  """Trains M centers, each the mean of the local models that are nearest to it.

  Memory is O(m) models, as the mixing weights are known only after training. A client that
  does not take part keeps its center.

  Args:
    model: the network.
    local: one client's training.
    models: number of centers, M.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all.

  Raises:
    InputError: no center.
  """
  if models < 1:
    raise InputError(f'got models={models}; expected at least 1')
  size = model.nbytes

  def from_its_center(received, examples, client, cluster, key):
    trained, _, report = local(tree.take(received, cluster), examples, client, (), key)
    away = jax.vmap(lambda center: tree.sub(trained['params'], center['params']))(received)
    return trained, jnp.argmin(jax.vmap(tree.dot)(away, away)), report

  train = mappers.map_clients(from_its_center, mapper)

  def init(key, federation):
    return FeSEMState(jnp.int32(0), tree.repeat(model.init(key), models),
                      dealt(federation.clients, models, jax.random.fold_in(key, 1)))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    positions, clients = sampling.sample(federation.clients, participation, cohort_key)
    before = state.cluster[positions]
    trained, nearest, cohort = train(
        state.centers, federation.examples, clients, before, local_key)
    cluster = jnp.where(state.round > 0, nearest, before)
    rows, occupied = sampling.by_size_within(clients, cluster, models)
    means = jax.vmap(tree.where)(occupied, tree.mix(rows, trained), state.centers)
    return (FeSEMState(state.round + 1, means, state.cluster.at[positions].set(cluster)),
            sampling.round_metrics(cohort))

  return Algorithm(init, round,
                   views=lambda state, _: {'clients': tree.take(state.centers, state.cluster)},
                   traffic=Traffic(up=size, down=size),
                   gauges=lambda state: {'cluster': state.cluster.astype(jnp.float32)})


def dealt(clients: Clients, groups: int, key: Key) -> Array:
  """Assigns clients to groups of nearly equal size, at random by their ids: [K] int32."""
  draws = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(clients.id)
  return jnp.argsort(jnp.argsort(draws)) % groups


def build_fesem(parts: Parts, settings) -> Algorithm:
  return fesem(parts.model, parts.training(), models=settings.models, **parts.cohort)


METHOD = Method(
    'fesem', build_fesem,
    {'models': Setting(3, 'number of models', at_least=1, at_most=10**4)}, kind='personal',
    needs=('own examples',),
    summary='clients are clustered by the distance of their models to centers',
    paper='Long et al. World Wide Web 2023. arXiv:2005.01026')
