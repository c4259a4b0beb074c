"""Clustered sampling: samples one client from each of m clusters, for an unbiased average.

  clients are placed on a line of length m, client i with length m n_i / n, in one of two orders
  r_ji = overlap of client i with [j, j + 1]       so that sum_j r_ji = m n_i / n
  l_j ~ r_j, y_j = LocalSGD(x) of client l_j       for j = 0 .. m - 1
  x <- 1/m sum_j y_j                               unbiased

Order `size`: the largest first (algorithm 1). Order `similarity`: as the leaves of Ward's
hierarchical clustering by the angles between the clients' last updates, which are zero for
clients never sampled (algorithm 2).

Our choices: algorithm 2 cuts that tree into clusters of at most n / m examples, keeps the m
largest and distributes the remaining clients; we cut the line of its leaves as in algorithm 1.
In the published code clients never sampled have the angle 0 to all others, so that they could
join any cluster; here it is 0 among themselves and a right angle to others. A client that is
sampled twice has the same key and initial model, hence the same result, which is weighted
twice; it is trained twice, and counted as two messages.

Reference: Fraboni, Vidal, Kameni, Lorenzi. Clustered Sampling: Low-Variance and Improved
  Representativity for Clients Selection in Federated Learning. ICML 2021. arXiv:2105.05883.
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
  Local,
  Mapper,
  Model,
  PyTree,
  Traffic,
)


class CluSampState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # the global model
  updates: PyTree  # the clients' last updates of their parameters, stacked; () by size


def clusamp(model: Model, local: Local, *, mapper: Mapper, participation: int = 0,
            order: str = 'size') -> Algorithm:
  """Averages m clients each round, one sampled from each cluster, possibly with repetition.

  By `similarity`, memory is O(K + m) models, and the server computes O(K^2) inner products of
  models and O(K^3) operations for the tree per round.

  Args:
    model: the network.
    local: one client's training.
    mapper: how clients are mapped.
    participation: draws per round, m; 0 means K.
    order: of the clients along the line, size or similarity.

  Raises:
    InputError: a setting is out of range.
  """
  if order not in ORDERS:
    raise InputError(f'got order={order}; expected one of {", ".join(ORDERS)}')
  if participation < 0:
    raise InputError(f'got participation={participation}; expected 0 (as many as clients) or more')
  remembers = order == 'similarity'
  size = model.nbytes

  def updating_local(start, examples, client, extra, key):
    variables, _, report = local(start, examples, client, extra, key)
    update = tree.sub(variables['params'], start['params']) if remembers else ()
    return variables, update, report

  train = mappers.mix_clients(updating_local, mapper)

  def init(key, federation):
    variables = model.init(key)
    everyone = tree.repeat(variables['params'], len(federation.clients.id)) if remembers else ()
    return CluSampState(jnp.int32(0), variables, tree.zeros(everyone))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    line = ORDERS[order](federation.clients, state.updates)
    clusters = distributions(federation.clients.size[line], participation or len(line))
    positions = line[jax.random.categorical(cohort_key, jnp.log(clusters), axis=1)]
    clients = tree.take(federation.clients, positions)
    mixed, updates, cohort = train(
        sampling.uniform(clients)[None], state.variables, federation.examples, clients, (),
        local_key)
    return CluSampState(
        state.round + 1, tree.take(mixed, 0),
        tree.put(state.updates, positions, updates)), sampling.round_metrics(cohort)

  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=size, down=size), stacks=('updates',))


def distributions(size: Array, count: int) -> Array:
  """Cuts the line of clients with these sizes [K] into `count` distributions, [m, K]."""
  size = jnp.where(size.sum() > 0, size, 1)
  total = size.sum()
  # Cut j is at j n / m examples. Its integer part and its fraction are separate: a float32
  # cannot hold their sum exactly, nor an int32 the product j n.
  cut = jnp.arange(count)
  whole = cut * (total // count) + cut * (total % count) // count
  fraction = cut * (total % count) % count / count
  ends = jnp.append(0, jnp.cumsum(size))
  beyond = (ends[None] - whole[:, None]) - fraction[:, None]
  return jnp.diff(jnp.clip(beyond, 0, total / count), axis=1) / (total / count)


def by_size(clients: Clients, updates: PyTree) -> Array:
  """Returns the positions of the clients, largest first: [K]."""
  del updates
  return jnp.lexsort((clients.id, -clients.size))


def by_similarity(clients: Clients, updates: PyTree) -> Array:
  """Returns the positions of the clients, with similar updates next to each other: [K]."""
  known = jnp.argsort(clients.id)  # So that ties do not depend on the positions.
  return known[leaves(angles(tree.take(updates, known))**2)]


def angles(updates: PyTree) -> Array:
  """Returns the angles between updates: [K, K], in radians."""
  products = tree.gram(updates)
  norms = jnp.sqrt(jnp.diag(products))
  lengths = norms[:, None] * norms[None]
  both_zero = norms[:, None] + norms[None] == 0
  cosines = jnp.where(both_zero, 1, products / jnp.where(lengths > 0, lengths, 1))
  return jnp.arccos(jnp.clip(cosines, -1, 1))


def leaves(gaps: Array) -> Array:
  """Returns the leaves of Ward's tree from left to right, [K], for squared distances [K, K]."""
  count = len(gaps)

  def merge(_, carry):
    gaps, size, cluster, place = carry
    a, b = jnp.divmod(jnp.argmin(gaps), count)
    # The Lance-Williams update; infinite entries, (a, a) and merged clusters, stay infinite.
    joined = ((size[a] + size) * gaps[a] + (size[b] + size) * gaps[b]
              - size * gaps[a, b]) / (size[a] + size[b] + size)
    gaps = gaps.at[a].set(joined).at[:, a].set(joined).at[b].set(jnp.inf).at[:, b].set(jnp.inf)
    place = jnp.where(cluster == b, place + size[a], place)
    return gaps, size.at[a].add(size[b]), jnp.where(cluster == b, a, cluster), place

  alone = jnp.where(jnp.eye(count, dtype=bool), jnp.inf, gaps)
  start = alone, jnp.ones(count), jnp.arange(count), jnp.zeros(count)
  *_, place = jax.lax.fori_loop(0, count - 1, merge, start)
  return jnp.argsort(place)


ORDERS = {'size': by_size, 'similarity': by_similarity}


def build_clusamp(parts: Parts, settings) -> Algorithm:
  return clusamp(parts.model, parts.training(), order=settings.order, **parts.cohort)


METHOD = Method(
    'clusamp', build_clusamp,
    {'order': Setting('size', 'clustering of clients: by size or by similarity of updates',
                      choices=ORDERS)},
    summary='one client is sampled from each of m clusters',
    paper='Fraboni et al. ICML 2021. arXiv:2105.05883')
