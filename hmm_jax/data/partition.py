"""Partitions of a data set over clients, as in the federated-learning literature.

Every function here has the signature

  (labels [D], clients K, rng, *, ...) -> K arrays of indices into `labels`

and depends on nothing but its arguments: an equal `rng` gives an equal partition.
Most compute a matrix of counts, the number of examples of each group (a class, a domain,
or everything) per client, by which `_deal` assigns random examples.
"""

from collections.abc import Callable

import numpy as np

from hmm_jax.data import values
from hmm_jax.registry import Partitioner, Setting
from hmm_jax.types import Dataset, InputError

Rows = list[np.ndarray]

# Long before these, a client has one class only, or all alike; far beyond, logarithms overflow.
_LEAST_ALPHA, _MOST_ALPHA = 1e-12, 1e12
_MOST_CLIENTS, _MOST_DRAWN = 10**6, 2**28  # where examples may repeat, which alone sets no bound


def iid(labels: np.ndarray, clients: int, rng: np.random.Generator) -> Rows:
  """Splits the shuffled examples evenly: sizes differ by one at most."""
  _check_clients(labels, clients)
  return _deal(np.zeros_like(labels), _even(len(labels), clients)[None], rng)


def dirichlet(labels: np.ndarray, clients: int, rng: np.random.Generator, *, alpha: float,
              min_size: int, retries: int = 1000) -> Rows:
  """Splits each class over the clients by its own Dirichlet draw.

  A client that already holds D / K examples gets none of the remaining classes, and the
  whole matrix is redrawn until every client holds `min_size` examples.

  Args:
    labels: [D].
    clients: K.
    rng: the only source of randomness.
    alpha: concentration; small values leave few clients with most of a class.
    min_size: fewest examples a client may hold.
    retries: draws before an error is raised.

  Returns:
    K disjoint arrays of indices that cover [0, D).

  Raises:
    InputError: a value is out of range or no draw reached `min_size`.

  Reference: M. Yurochkin et al. "Bayesian Nonparametric Federated Learning of Neural
  Networks". ICML 2019. arXiv:1905.12022. With the cap and redraws in the code of Q. Li et al.
  "Federated Learning on Non-IID Data Silos: An Experimental Study". ICDE 2022.
  arXiv:2102.02079.
  """
  _check_skew(labels, clients, alpha, min_size)
  _, group, totals = _groups(labels, clients)

  def draw():
    counts = np.zeros((len(totals), clients), int)
    for c, total in enumerate(totals):
      full = counts.sum(axis=0) >= len(labels) / clients
      logits = np.where(full, -np.inf, _log_gamma(rng, alpha, clients))
      counts[c] = _apportion(_softmax(logits), total)
    return counts

  return _deal(group, _redraw(draw, alpha, min_size, retries), rng)


def shards(labels: np.ndarray, clients: int, rng: np.random.Generator, *,
           classes_per_client: int) -> Rows:
  """Gives every client examples of exactly `classes_per_client` classes.

  Client k owns class k (modulo the number of classes) and others at random; the examples
  of a class are split evenly over its owners, and a class without owners stays unused.

  Raises:
    InputError: there are fewer classes, or a class has fewer examples than owners.

  Reference: the "#C = k" split of Q. Li et al. "Federated Learning on Non-IID Data
  Silos: An Experimental Study". ICDE 2022. arXiv:2102.02079. It makes exact what the
  label-sorted shards of B. McMahan et al. "Communication-Efficient Learning of Deep
  Networks from Decentralized Data". AISTATS 2017. arXiv:1602.05629 make likely.
  """
  _check_clients(labels, clients)
  classes, group, totals = _groups(labels, clients)
  if not 1 <= classes_per_client <= len(classes):
    raise InputError(f'got shards={classes_per_client}; expected from 1 to '
                     f'{len(classes)}, the number of classes')
  owns = _choose_classes(len(classes), clients, classes_per_client, rng)
  counts = np.zeros(owns.shape, int)
  for c in np.flatnonzero(owns.any(axis=1)):
    owners = np.flatnonzero(owns[c])
    if len(owners) > totals[c]:
      raise InputError(f'got shards={classes_per_client} with clients={clients}; class '
                       f'{classes[c]} has {totals[c]} examples for {len(owners)} owners, '
                       'expected fewer clients')
    counts[c, owners] = _even(totals[c], len(owners))
  return _deal(group, counts, rng)


def _choose_classes(classes, clients, classes_per_client, rng):
  """Returns which client owns which class: [C, K] bool."""
  owns = np.zeros((classes, clients), bool)
  for k in range(clients):
    others = np.delete(np.arange(classes), k % classes)
    owns[rng.choice(others, classes_per_client - 1, replace=False), k] = True
    owns[k % classes, k] = True
  return owns


def clusters(labels: np.ndarray, clients: int, rng: np.random.Generator, *, clusters: int,
             classes_per_cluster: int, alpha: float) -> Rows:
  """Gives every cluster of clients `classes_per_cluster` classes.

  Clusters are consecutive clients, and their sizes differ by one at most. A cluster draws
  its classes without replacement from a pool of all classes, which is refilled when empty.
  The examples of a class are split by one Dirichlet draw over the clients of all clusters
  that own it; a class without owners stays unused.

  Our choice: clusters of equal size, none of which draws a class twice. The authors' code
  draws the sizes, and returns the drawn class when it refills the pool.

  Args:
    labels: [D].
    clients: K.
    rng: the only source of randomness.
    clusters: from 1 to K.
    classes_per_cluster: from 1 to the number of classes.
    alpha: concentration; large values split a class evenly over its owners.

  Raises:
    InputError: a value is out of range.

  Reference: S. Chen, T. Zhou, G. Long, J. Jiang, C. Zhang. "FedMerge: Federated
  Personalization via Model Merging". AAAI 2026. arXiv:2504.06768.
  """
  _check_clients(labels, clients)
  _check_alpha(alpha, 'cluster_alpha')
  if not 1 <= clusters <= clients:
    raise InputError(f'got clusters={clusters}; expected from 1 to {clients}, the '
                     'number of clients')
  classes, group, totals = _groups(labels, clients)
  if not 1 <= classes_per_cluster <= len(classes):
    raise InputError(f'got classes_per_cluster={classes_per_cluster}; expected from 1 '
                     f'to {len(classes)}, the number of classes')
  owns = _draw_classes(len(classes), clusters, classes_per_cluster, rng)
  owns = np.repeat(owns, _even(clients, clusters), axis=1)
  logits = np.where(owns, _log_gamma(rng, alpha, owns.shape), -np.inf)
  counts = np.zeros(owns.shape, int)
  for c in np.flatnonzero(owns.any(axis=1)):
    counts[c] = _apportion(_softmax(logits[c]), totals[c])
  return _deal(group, counts, rng)


def _draw_classes(classes, clusters, classes_per_cluster, rng):
  """Returns which cluster owns which class, drawn from one pool: [C, clusters] bool."""
  owns = np.zeros((classes, clusters), bool)
  everything = pool = np.arange(classes)
  for cluster in range(clusters):
    last = pool[:0]
    if len(pool) < classes_per_cluster:
      last, pool = pool, everything
    drawn = rng.choice(np.setdiff1d(pool, last), classes_per_cluster - len(last), replace=False)
    pool = np.setdiff1d(pool, drawn)
    owns[last, cluster] = owns[drawn, cluster] = True
  return owns


def quantity(labels: np.ndarray, clients: int, rng: np.random.Generator, *, alpha: float,
             min_size: int) -> Rows:
  """Deals IID examples: `min_size` to every client, the others by one Dirichlet draw.

  The fixed part is our choice, instead of redrawing until all clients reach the minimum:
  with a small alpha, they practically never do.

  Raises:
    InputError: a value is out of range.

  Reference: Q. Li et al. "Federated Learning on Non-IID Data Silos: An Experimental
  Study". ICDE 2022. arXiv:2102.02079.
  """
  _check_skew(labels, clients, alpha, min_size)
  shares = _softmax(_log_gamma(rng, alpha, clients))
  counts = min_size + _apportion(shares, len(labels) - clients * min_size)
  return _deal(np.zeros_like(labels), counts[None], rng)


def natural(labels: np.ndarray, clients: int, rng: np.random.Generator, *,
            owner: np.ndarray | None) -> Rows:
  """Makes one client of each owner, or of K random owners.

  Args:
    labels: [D], unused.
    clients: K; 0 takes every owner.
    rng: chooses the subset.
    owner: [D] ints, None if the data set names no owners.

  Raises:
    InputError: no owners, or fewer than K.

  Reference: S. Caldas et al. "LEAF: A Benchmark for Federated Settings".
  arXiv:1812.01097.
  """
  if owner is None:
    raise InputError("got kind='natural'; the data set names no owners, expected a "
                     "text set or an npz set with an array 'client'")
  owners = np.unique(owner)
  if not 0 <= clients <= len(owners):
    raise InputError(f'got clients={clients}; expected from 1 to {len(owners)}, the number of '
                     'natural clients, or 0 for all')
  chosen = np.sort(rng.choice(owners, clients or len(owners), replace=False))
  position = np.searchsorted(chosen, owner).clip(max=len(chosen) - 1)
  return _split(np.where(chosen[position] == owner, position, -1), len(chosen))


def domain(labels: np.ndarray, clients: int, rng: np.random.Generator, *,
           domain: np.ndarray | None) -> Rows:
  """Splits each domain evenly over its own clients, more of them for larger domains.

  Args:
    labels: [D], unused.
    clients: K, at least the number of domains.
    rng: shuffles the examples.
    domain: [D] ints, None if the data set names no domains.

  Raises:
    InputError: no domains, or more of them than clients.
  """
  if domain is None:
    raise InputError("got kind='domain'; the data set names no domains, expected "
                     "crisismmd or an npz set with an array 'domain'")
  _check_clients(labels, clients)
  names, group, totals = _groups(domain, clients)
  if clients < len(names):
    raise InputError(f'got clients={clients}; expected at least {len(names)}, the number of '
                     'domains')
  share = np.ones_like(totals)
  for _ in range(clients - len(names)):
    share[np.argmax(totals / share)] += 1  # the domain with the most examples per client
  counts = np.zeros((len(names), clients), int)
  last = np.cumsum(share)
  for d, total in enumerate(totals):
    counts[d, last[d] - share[d]:last[d]] = _even(total, share[d])
  return _deal(group, counts, rng)


def resample(labels: np.ndarray, clients: int, rng: np.random.Generator, *, alpha: float,
             size: int, classes: int) -> Rows:
  """Lets every client draw from all examples by its own Dirichlet class distribution.

  Examples overlap between clients, and repeat in a client that draws more of a class than
  there are. The distributions are the first draws from `rng`: an equal `rng` gives a client
  the same one over other examples of the data set, such as held-out ones.

  Args:
    labels: [D].
    clients: K.
    rng: the only source of randomness.
    alpha: concentration of the class distributions.
    size: examples each client draws.
    classes: C, of the whole data set; a class without examples here is never drawn.

  Returns:
    K arrays of `size` indices in random order.

  Raises:
    InputError: a value is out of range.

  Reference: T.-M. H. Hsu, H. Qi, M. Brown. "Measuring the Effects of Non-Identical Data
  Distribution for Federated Visual Classification". arXiv:1909.06335.
  """
  _check_alpha(alpha)
  if not 1 <= clients <= _MOST_CLIENTS:
    raise InputError(f'got clients={clients}; expected from 1 to {_MOST_CLIENTS:,}')
  if not 1 <= size <= _MOST_DRAWN // clients:
    raise InputError(f'got size={size} with clients={clients}; expected from 1 to '
                     f'{_MOST_DRAWN // clients:,} examples per client')
  values.check_counts(clients, classes)
  logits = _log_gamma(rng, alpha, (clients, classes))
  members = [np.flatnonzero(labels == c) for c in range(classes)]
  absent = [not len(rows) for rows in members]
  mixes = _softmax(np.where(absent, -np.inf, logits))
  return [_draw(members, counts, rng) for counts in rng.multinomial(size, mixes)]


def _draw(members, counts, rng):
  """Draws `counts` examples of each class, with replacement only where it has too few."""
  rows = [rng.choice(own, count, replace=count > len(own))
          for own, count in zip(members, counts, strict=True) if count]
  return rng.permutation(np.concatenate(rows))


def _groups(names, clients):
  """Returns the distinct names, the number of each example's ([D]), and how many have it."""
  distinct, group, totals = np.unique(names, return_inverse=True, return_counts=True)
  values.check_counts(clients, len(distinct))
  return distinct, group, totals


def _check_clients(labels, clients):
  if not 1 <= clients <= len(labels):
    raise InputError(f'got clients={clients}; expected from 1 to {len(labels)}, the number of '
                     'training examples')


def _check_alpha(alpha, key='alpha'):
  if not _LEAST_ALPHA <= alpha <= _MOST_ALPHA:
    raise InputError(f'got {key}={alpha}; expected a number from {_LEAST_ALPHA} to {_MOST_ALPHA}')


def _check_skew(labels, clients, alpha, min_size):
  _check_clients(labels, clients)
  _check_alpha(alpha)
  if not 1 <= min_size <= len(labels) // clients:
    raise InputError(f'got min_size={min_size} with clients={clients}; expected from 1 '
                     f'to {len(labels) // clients}, an even share of {len(labels)} examples')


def _log_gamma(rng, alpha, shape):
  """Returns logarithms of draws from Gamma(alpha); their softmax is a Dirichlet draw."""
  # Gamma(a) is Gamma(a + 1) U^(1/a). For a small alpha nearly all draws are below
  # the smallest float; kept as logarithms they never sum to 0 and never give NaN.
  return np.log(rng.standard_gamma(alpha + 1, shape)) - rng.standard_exponential(shape) / alpha


def _softmax(logits):
  weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return weights / weights.sum(axis=-1, keepdims=True)


def _apportion(shares, total):
  """Rounds shares [K] of `total` examples to counts that sum to it."""
  return np.diff(np.rint(np.cumsum(shares) * total).astype(int), prepend=0)


def _even(total, parts):
  """Splits `total` into counts that differ by one at most."""
  return total // parts + (np.arange(parts) < total % parts)


def _redraw(draw: Callable[[], np.ndarray], alpha, min_size, retries):
  """Draws counts [C, K] until every client holds `min_size` examples."""
  reached = 0
  for _ in range(retries):
    counts = draw()
    smallest = counts.sum(axis=0).min()
    if smallest >= min_size:
      return counts
    reached = max(reached, smallest)
  raise InputError(
      f'got min_size={min_size} with alpha={alpha} and '
      f'clients={counts.shape[1]}; the best of {retries} draws left a client with {reached} '
      'examples, expected a smaller min_size, a larger alpha or fewer clients')


def _deal(group, counts, rng):
  """Assigns random examples of each group ([D] numbers from 0) by counts [groups, K]."""
  owner = np.full(len(group), -1)
  for g, count in enumerate(counts):
    rows = rng.permutation(np.flatnonzero(group == g))
    owner[rows[:count.sum()]] = np.repeat(np.arange(len(count)), count)
  return _split(owner, counts.shape[1])


def _split(owner, clients):
  """Returns the sorted indices of each client; -1 in `owner` [D] means no client."""
  order = np.argsort(owner, kind='stable')
  return np.split(order, np.searchsorted(owner[order], np.arange(clients + 1)))[1:-1]


ALPHA = Setting(
    0.1, 'concentration; smaller is more skewed (dirichlet, quantity, resample)',
    at_least=_LEAST_ALPHA, at_most=_MOST_ALPHA)
MIN_SIZE = Setting(10, 'least number of examples per client (dirichlet, quantity)', at_least=1)
SKEW = {'alpha': ALPHA, 'min_size': MIN_SIZE}


def _iid(pool: Dataset, clients: int, rng: np.random.Generator, settings) -> Rows:
  del settings
  return iid(pool.y_train, clients, rng)


def _dirichlet(pool: Dataset, clients: int, rng: np.random.Generator, settings) -> Rows:
  return dirichlet(pool.y_train, clients, rng, alpha=settings.alpha, min_size=settings.min_size)


def _shards(pool: Dataset, clients: int, rng: np.random.Generator, settings) -> Rows:
  return shards(pool.y_train, clients, rng, classes_per_client=settings.shards)


def _clusters(pool: Dataset, clients: int, rng: np.random.Generator, settings) -> Rows:
  return clusters(
      pool.y_train, clients, rng, clusters=settings.clusters, alpha=settings.cluster_alpha,
      classes_per_cluster=settings.classes_per_cluster)


def _quantity(pool: Dataset, clients: int, rng: np.random.Generator, settings) -> Rows:
  return quantity(pool.y_train, clients, rng, alpha=settings.alpha, min_size=settings.min_size)


def _natural(pool: Dataset, clients: int, rng: np.random.Generator, settings) -> Rows:
  del settings
  return natural(pool.y_train, clients, rng, owner=pool.client)


def _domain(pool: Dataset, clients: int, rng: np.random.Generator, settings) -> Rows:
  del settings
  return domain(pool.y_train, clients, rng, domain=pool.domain)


def _resample(pool: Dataset, clients: int, rng: np.random.Generator, settings) -> Rows:
  return resample(pool.y_train, clients, rng, alpha=settings.alpha, classes=pool.classes,
                  size=settings.size)


IID = Partitioner('iid', _iid, summary='shuffled examples, split evenly')
DIRICHLET = Partitioner(
    'dirichlet', _dirichlet, SKEW, classes=True,
    summary='each class split over the clients by a Dirichlet draw',
    paper='Yurochkin et al. ICML 2019. arXiv:1905.12022')
SHARDS = Partitioner(
    'shards', _shards, {'shards': Setting(2, 'classes per client (shards)', at_least=1)},
    classes=True, summary='a fixed number of classes per client',
    paper='Li et al. ICDE 2022. arXiv:2102.02079')
CLUSTERS = Partitioner(
    'clusters', _clusters,
    {'clusters': Setting(5, 'number of clusters of clients (clusters)', at_least=1),
     'classes_per_cluster': Setting(3, 'classes per cluster (clusters)', at_least=1),
     'cluster_alpha': Setting(
         10.0, 'concentration of a class over the clients that own it (clusters)',
         at_least=_LEAST_ALPHA, at_most=_MOST_ALPHA)},
    classes=True, summary='a fixed number of classes per cluster of clients',
    paper='Chen et al. AAAI 2026. arXiv:2504.06768')
QUANTITY = Partitioner(
    'quantity', _quantity, SKEW, summary='IID examples, clients of different sizes',
    paper='Li et al. ICDE 2022. arXiv:2102.02079')
NATURAL = Partitioner(
    'natural', _natural, labels=False, summary='one client per owner',
    paper='Caldas et al. 2018. arXiv:1812.01097')
DOMAIN = Partitioner('domain', _domain, labels=False, summary='one domain per client')
RESAMPLE = Partitioner(
    'resample', _resample,
    {'alpha': ALPHA, 'size': Setting(
        0, 'examples per client (resample); 0: all examples / clients', at_least=0)},
    overlaps=True, classes=True,
    summary='each client draws from all examples by its own class distribution',
    paper='Hsu, Qi, Brown. 2019. arXiv:1909.06335')

PARTITIONERS = {record.name: record for record in (
    IID, DIRICHLET, SHARDS, CLUSTERS, QUANTITY, NATURAL, DOMAIN, RESAMPLE)}
