"""FeSEM: a client belongs to the center nearest to the model that it has just trained.

  theta_i <- local steps of client i from mu_{c_i}
  c_i     <- argmin_m ||theta_i - mu_m||^2                over the parameters
  mu_m    <- sum_{i: c_i = m} n_i theta_i / sum_{i: c_i = m} n_i

All centers begin as one model, and the first round deals the clients evenly to them, at
random (our choice, for the paper leaves it open): centers from initializations of their own
would never mix, since the distance between those is far more than training moves a model.
A center without rows stays. Weighing by rows is our choice, so that one center is FedAvg.
BatchNorm statistics are averaged with their center and count in no distance (our choice).

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

  Memory is O(m) models: a client's weight is known only when it has trained. One that does
  not take part keeps its center.

  Args:
    model: the network.
    local: one client's training.
    models: M.
    mapper: how clients are mapped.
    participation: clients a round, m; 0 means all.

  Raises:
    InputError: no center.
  """
  if models < 1:
    raise InputError(f'got models={models}; expected at least 1')
  size = tree.nbytes(jax.eval_shape(model.init, jax.random.key(0)))

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
  """Deals clients to groups, as evenly as can be, at random by their ids: [K] int32."""
  draws = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(clients.id)
  return jnp.argsort(jnp.argsort(draws)) % groups


def build_fesem(parts: Parts, settings) -> Algorithm:
  return fesem(parts.model, parts.training(), models=settings.models, **parts.cohort)


METHOD = Method(
    'fesem', build_fesem, {'models': Setting(3, 'number of models', at_least=1)}, kind='personal',
    needs=('own examples',), summary='clients are clustered by the distance of their models',
    paper='Long et al. World Wide Web 2023. arXiv:2005.01026')
