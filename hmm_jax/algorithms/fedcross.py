"""FedCross: each client model is mixed with one collaborator, not with all.

  a pool of m models w_1 .. w_m, initially copies of one; in every round
    slot i is sent to a random client:      w_i <- LocalSGD(w_i)
    w_glob = (1/m) sum_i w_i                evaluated and deployed, never trained
    w_i <- alpha w_i + (1 - alpha) w_co(i)  co(i) in cyclic order or by cosine similarity

Reference: Hu, Zhou, Yue, Ling, Huang, Li, Liu, Lian, Chen. FedCross: Towards Accurate Federated
  Learning via Multi-Model Cross-Aggregation. ICDE 2024. arXiv:2210.08285.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.registry import Method, Setting
from hmm_jax.types import Algorithm, Array, Local, Mapper, Model, PyTree, Traffic


class FedCrossState(NamedTuple):
  round: Array  # [] int32
  pool: PyTree  # [m, ...], the models in the slots


def fedcross(model: Model, local: Local, *, mapper: Mapper, collaborator: Callable,
             participation: int = 0, alpha: float = 0.99) -> Algorithm:
  """Cross-aggregates the models of a pool of m slots each round.

  Args:
    model: the network.
    local: one client's training.
    mapper: how clients are mapped.
    collaborator: (round, pool's params) -> [m], the partner of each slot: `in_order`,
      `most_similar` or `least_similar`.
    participation: slots, as many as clients per round, m; 0 means all.
    alpha: weight of a model itself in its mixture.
  """
  train = mappers.map_clients(local, mapper, start_axis=0)
  size = model.nbytes

  def init(key, federation):
    slots = participation or len(federation.clients.id)
    return FedCrossState(jnp.int32(0), tree.repeat(model.init(key), slots))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    _, clients = sampling.shuffled(federation.clients, participation, cohort_key)
    trained, _, cohort = train(state.pool, federation.examples, clients, (), local_key)
    partner = collaborator(state.round, trained['params'])
    own = jnp.eye(len(partner))
    pool = tree.mix(alpha * own + (1 - alpha) * own[partner], trained)
    return FedCrossState(state.round + 1, pool), sampling.round_metrics(cohort)

  def views(state, federation):
    del federation
    return {'global': jax.tree.map(lambda x: x.mean(axis=0), state.pool)}

  return Algorithm(init, round, views=views, traffic=Traffic(up=size, down=size))


def in_order(round: Array, pool: PyTree) -> Array:
  """Selects partners in cyclic order: in round t the slot at distance t mod (m - 1) + 1."""
  slots = tree.count(pool)
  return (jnp.arange(slots) + round % max(slots - 1, 1) + 1) % slots


def most_similar(round: Array, pool: PyTree) -> Array:
  """Selects the other slot with the highest cosine similarity."""
  del round
  return jnp.argmax(_cosines(pool, diagonal=-jnp.inf), axis=1)


def least_similar(round: Array, pool: PyTree) -> Array:
  """Selects the other slot with the lowest cosine similarity."""
  del round
  return jnp.argmin(_cosines(pool, diagonal=jnp.inf), axis=1)


def _cosines(pool, diagonal):
  """Returns the cosine similarities of all pairs of models, [m, m]."""
  gram = tree.gram(pool)
  norm = jnp.sqrt(jnp.diag(gram))
  cosines = gram / (norm[:, None] * norm[None])
  return jnp.where(jnp.eye(len(norm), dtype=bool), diagonal, cosines)


COLLABORATORS = {'in_order': in_order, 'lowest': least_similar, 'highest': most_similar}
SETTINGS = {
    'collaborator': Setting(
        'lowest', 'the collaborator of a model: in cyclic order, or by cosine similarity',
        choices=COLLABORATORS),
    'alpha': Setting(0.99, 'weight of a model itself in its mixture', at_least=0, at_most=1),
}


def build_fedcross(parts: Parts, settings) -> Algorithm:
  return fedcross(parts.model, parts.training(), alpha=settings.alpha,
                  collaborator=COLLABORATORS[settings.collaborator], **parts.cohort)


METHOD = Method(
    'fedcross', build_fedcross, SETTINGS,
    summary='each model is mixed with one collaborator instead of all',
    paper='Hu et al. ICDE 2024. arXiv:2210.08285')
