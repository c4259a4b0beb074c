"""Partitions: what every one deals, and how each is drawn."""

from functools import partial
import inspect
import itertools
import re
import time

from absl.testing import absltest, parameterized
import numpy as np
import pytest
from reference.dirichlet_partition import dirichlet_partition

from hmm_jax.data import partition
from hmm_jax.types import InputError

LABELS = np.random.default_rng(7).choice([0, 1, 2, 5], 400, p=[.4, .3, .2, .1])  # 3, 4 are absent
OWNER = np.random.default_rng(8).choice([3, 10, 11, 40, 41, 90], 400)
DISJOINT = {
    'iid': partition.iid,
    'dirichlet': partial(partition.dirichlet, alpha=0.5, min_size=5),
    'shards': partial(partition.shards, classes_per_client=2),
    'clusters': partial(partition.clusters, clusters=2, classes_per_cluster=2, alpha=0.5),
    'quantity': partial(partition.quantity, alpha=0.5, min_size=5),
    'natural': partial(partition.natural, owner=OWNER),
    'domain': partial(partition.domain, domain=OWNER % 3),
}
ALL = DISJOINT | {'resample': partial(partition.resample, alpha=0.5, size=30, classes=6)}

SKEWED = [(kind, kind) for kind in ('dirichlet', 'quantity', 'resample')]


def rng(seed=0):
  return np.random.default_rng(seed)


def mix(labels, rows):
  return np.bincount(labels[rows], minlength=6) / len(rows)


class PartitionTest(parameterized.TestCase):

  @parameterized.named_parameters((kind, kind) for kind in DISJOINT)
  def test_deals_every_row_once(self, kind):
    rows = DISJOINT[kind](LABELS, 6, rng())
    self.assertLen(rows, 6)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(400))

  @parameterized.named_parameters((kind, kind) for kind in ALL)
  def test_depends_on_the_generator_alone(self, kind):
    first, again, other = (ALL[kind](LABELS, 5, rng(seed)) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
      np.testing.assert_array_equal(a, b)
    self.assertFalse(all(map(np.array_equal, first, other)))

  @parameterized.named_parameters((kind, kind) for kind in ALL if kind != 'domain')
  def test_one_client(self, kind):
    settings = {'shards': {'classes_per_client': 4}, 'clusters': {'clusters': 1}}.get(kind, {})
    rows, = partial(ALL[kind], **settings)(LABELS, 1, rng())
    self.assertNotEmpty(rows)

  @parameterized.named_parameters((kind, kind) for kind in ALL)
  def test_all_share_a_signature(self, kind):
    parameters = list(inspect.signature(getattr(partition, kind)).parameters.values())
    self.assertEqual([p.name for p in parameters[:3]], ['labels', 'clients', 'rng'])
    self.assertTrue(all(p.kind == p.KEYWORD_ONLY for p in parameters[3:]))

  @parameterized.named_parameters((kind, kind) for kind in ALL if kind != 'natural')
  def test_client_numbers_out_of_range(self, kind):
    for clients in (0, -1):
      with self.assertRaisesRegex(InputError, f'got clients={clients}; expected (at least|from) 1'):
        ALL[kind](LABELS, clients, rng())
    if kind != 'resample':
      with self.assertRaisesRegex(InputError, 'got clients=401; expected from 1 to 400'):
        ALL[kind](LABELS, 401, rng())

  @parameterized.named_parameters(SKEWED)
  def test_alpha_out_of_range(self, kind):
    for alpha in (0, -1, np.nan, np.inf, 1e-320, 1e-13, 1e300):
      with self.assertRaisesRegex(InputError, re.escape(f'got alpha={alpha};')):
        ALL[kind](LABELS, 4, rng(), alpha=alpha)

  @parameterized.named_parameters(SKEWED[:2])
  def test_min_size_out_of_range(self, kind):
    for min_size in (0, 101):
      with self.assertRaisesRegex(InputError, f'got min_size={min_size} with clients=4; '
                                  'expected from 1 to 100'):
        ALL[kind](LABELS, 4, rng(), min_size=min_size)

  @parameterized.named_parameters(
      ('dirichlet', partial(partition.dirichlet, alpha=0.5, min_size=1)),
      ('shards', partial(partition.shards, classes_per_client=2)),
      ('clusters', partial(partition.clusters, clusters=2, classes_per_cluster=2, alpha=0.5)))
  def test_a_table_of_clients_and_classes_that_does_not_fit_into_memory(self, deal):
    with self.assertRaisesRegex(InputError, 'got clients=20000 with 20,000 classes'):
      deal(np.arange(20_000), 20_000, rng())

  def test_gives_up_after_so_many_draws(self):
    draw = partial(partition.dirichlet, LABELS, 4, alpha=0.5, retries=20)
    with self.assertRaisesRegex(InputError, 'got min_size=95 with alpha=0.5 and clients=4; the '
                                r'best of 20 draws left a client with \d+') as caught:
      draw(rng(), min_size=95)
    reached = int(str(caught.exception).split('client with ')[1].split()[0])
    self.assertLen(draw(rng(), min_size=reached), 4)  # it is reachable
    with self.assertRaises(InputError):
      draw(rng(), min_size=reached + 1)

  @parameterized.named_parameters(SKEWED[:2])
  def test_min_size_is_kept(self, kind):
    for alpha, seed in itertools.product((0.5, 0.05), range(3)):
      rows = ALL[kind](LABELS, 4, rng(seed), alpha=alpha, min_size=20)
      self.assertGreaterEqual(min(map(len, rows)), 20)

  @parameterized.named_parameters(SKEWED)
  def test_extreme_alpha_never_gives_nan(self, kind):
    settings = {'dirichlet': {'min_size': 1, 'retries': 3}, 'quantity': {'min_size': 1},
                'resample': {}}[kind]
    for alpha, seed in itertools.product((1e-2, 1e-6, 1e-12, 1e6, 1e12), range(20)):
      try:
        rows = ALL[kind](LABELS, 3, rng(seed), alpha=alpha, **settings)
      except InputError as error:
        self.assertIn('the best of 3 draws', str(error))
      else:
        self.assertGreaterEqual(min(map(len, rows)), 1)


class IidTest(absltest.TestCase):

  def test_sizes_differ_by_one_and_rows_are_shuffled(self):
    rows = partition.iid(LABELS, 7, rng())
    self.assertEqual(sorted(map(len, rows)), [57] * 6 + [58])
    self.assertGreater(np.ptp(rows[0]), 300)


class DirichletTest(parameterized.TestCase):

  def test_looks_like_the_row_by_row_recipe(self):
    labels = np.arange(600) % 5
    figures = []
    for deal in (partition.dirichlet, dirichlet_partition):
      runs = []
      for seed in range(150):
        rows = deal(labels, 6, rng(seed), alpha=0.3, min_size=5)
        sizes = np.sort([len(own) for own in rows])
        present = [len(set(labels[own])) for own in rows]
        top = [np.bincount(labels[own]).max() / len(own) for own in rows]
        runs.append([*sizes, np.mean(present), np.mean(top)])
      figures.append((np.mean(runs, axis=0), np.std(runs, axis=0) / np.sqrt(len(runs))))
    (fast, fast_error), (slow, slow_error) = figures
    np.testing.assert_array_less(abs(fast - slow), 3.5 * np.hypot(fast_error, slow_error))

  def test_small_alpha_skews_large_alpha_does_not(self):
    for alpha, low, high in ((0.05, 0.75, 1), (1000, 0.35, 0.5)):
      rows = partition.dirichlet(LABELS, 4, rng(), alpha=alpha, min_size=5)
      self.assertBetween(np.mean([mix(LABELS, own).max() for own in rows]), low, high)

  def test_a_full_client_gets_no_more(self):
    # With one class a client at a time, only the class that fills it may exceed D / K.
    labels = np.arange(1000) % 10
    for seed in range(20):
      for own in partition.dirichlet(labels, 5, rng(seed), alpha=0.2, min_size=1):
        last = np.bincount(labels[own], minlength=10)
        before = np.cumsum(last) - last
        self.assertTrue(np.all(before[last > 0] < 200))

  @pytest.mark.slow
  def test_is_fast(self):
    labels = rng().integers(0, 10, 60_000)
    start = time.process_time()
    partition.dirichlet(labels, 1000, rng(), alpha=0.5, min_size=2)
    with self.assertRaises(InputError):  # all retries
      partition.dirichlet(labels, 1000, rng(), alpha=0.01, min_size=10)
    self.assertLess(time.process_time() - start, 5)


class ShardsTest(parameterized.TestCase):

  def test_exactly_so_many_classes_a_client(self):
    for k, clients, seed in itertools.product((1, 2, 3, 4), (1, 3, 4, 9), (0, 1)):
      rows = partition.shards(LABELS, clients, rng(seed), classes_per_client=k)
      self.assertEqual({len(set(LABELS[own])) for own in rows}, {k})

  def test_a_class_is_dealt_evenly_to_its_owners(self):
    rows = partition.shards(LABELS, 9, rng(), classes_per_client=2)
    for c in (0, 1, 2, 5):
      shares = [np.sum(LABELS[own] == c) for own in rows if c in LABELS[own]]
      self.assertLessEqual(np.ptp(shares), 1)
      self.assertEqual(sum(shares), np.sum(c == LABELS))

  def test_a_class_without_an_owner_stays_unused(self):
    rows = partition.shards(LABELS, 2, rng(), classes_per_client=1)
    self.assertEqual([set(LABELS[own]) for own in rows], [{0}, {1}])

  def test_the_other_classes_are_random(self):
    pairs = {tuple(sorted(set(LABELS[own]))) for own in
             partition.shards(LABELS, 40, rng(), classes_per_client=2)}
    self.assertLen(pairs, 6)

  @parameterized.parameters(0, 5)
  def test_class_numbers_out_of_range(self, k):
    with self.assertRaisesRegex(InputError, f'got shards={k}; expected from 1 to 4'):
      partition.shards(LABELS, 4, rng(), classes_per_client=k)

  def test_a_class_with_fewer_rows_than_owners(self):
    labels = np.array([0] * 20 + [1] * 2)
    with self.assertRaisesRegex(InputError, 'got shards=2 with clients=3; class 1 has 2 '):
      partition.shards(labels, 3, rng(), classes_per_client=2)


class ClustersTest(parameterized.TestCase):

  def deal(self, labels, clients, seed=0, **settings):
    rows = partition.clusters(labels, clients, rng(seed), **settings)
    return rows, [set(labels[own]) for own in rows]

  @parameterized.parameters((6, 2, [3, 3]), (7, 3, [3, 2, 2]), (5, 5, [1] * 5), (4, 1, [4]))
  def test_clusters_are_runs_of_clients_with_classes_in_common(self, clients, clusters, sizes):
    labels = np.arange(1000) % 10
    _, held = self.deal(labels, clients, clusters=clusters, classes_per_cluster=2, alpha=100.)
    first = np.cumsum([0, *sizes[:-1]])
    expected = [held[k] for k, size in zip(first, sizes, strict=True) for _ in range(size)]
    self.assertEqual(held, expected)
    self.assertLen(set(map(frozenset, held)), clusters)

  def test_classes_come_from_a_pool_that_is_filled_when_empty(self):
    labels = np.arange(1000) % 10
    for k, seed in itertools.product((1, 3, 5, 7, 10), range(4)):
      _, held = self.deal(labels, 5, seed, clusters=5, classes_per_cluster=k, alpha=100.)
      self.assertEqual([len(own) for own in held], [k] * 5)
      for clusters in range(1, 6):  # after each, no class is ahead of another by two
        owners = np.bincount([c for own in held[:clusters] for c in own], minlength=10)
        self.assertLessEqual(np.ptp(owners), 1)

  def test_which_classes_is_random(self):
    seen = {frozenset(self.deal(LABELS, 2, seed, clusters=2, classes_per_cluster=3, alpha=9.)[1][c])
            for seed in range(60) for c in (0, 1)}
    self.assertLen(seen, 4)

  def test_a_class_without_an_owner_stays_unused(self):
    rows, held = self.deal(LABELS, 4, clusters=2, classes_per_cluster=1, alpha=100.)
    self.assertLen(set.union(*held), 2)
    self.assertEqual(sum(map(len, rows)), np.isin(LABELS, list(set.union(*held))).sum())

  def test_a_class_is_dirichlet_over_the_clients_of_all_its_owners(self):
    alpha, clients = 2., 4  # two clusters that own the one class there is
    labels = np.zeros(10_000, int)
    shares = np.array([[len(own) / 10_000 for own in partition.clusters(
        labels, clients, rng(seed), clusters=2, classes_per_cluster=1, alpha=alpha)]
                       for seed in range(300)])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / clients, atol=0.04)
    variance = (1 / clients) * (1 - 1 / clients) / (alpha * clients + 1)
    np.testing.assert_allclose(shares.var(), variance, rtol=0.15)

  def test_classes_are_drawn_apart(self):
    labels = np.arange(4000) % 4
    rows, _ = self.deal(labels, 3, clusters=1, classes_per_cluster=4, alpha=1.)
    self.assertGreater(np.ptp([mix(labels, own)[0] for own in rows]), 0.05)

  @parameterized.parameters(
      ({'clusters': 0}, 'got clusters=0; expected from 1 to 4'),
      ({'clusters': 5}, 'got clusters=5; expected from 1 to 4'),
      ({'classes_per_cluster': 0}, 'got classes_per_cluster=0; expected from 1 to 4'),
      ({'classes_per_cluster': 5}, 'got classes_per_cluster=5; expected from 1 to 4'),
      ({'alpha': 0}, 'got cluster_alpha=0'), ({'alpha': np.nan}, 'got cluster_alpha=nan'))
  def test_refuses(self, settings, pattern):
    with self.assertRaisesRegex(InputError, pattern):
      self.deal(LABELS, 4, **{'clusters': 2, 'classes_per_cluster': 2, 'alpha': 1., **settings})


class QuantityTest(absltest.TestCase):

  def test_sizes_are_dirichlet(self):
    alpha, clients, rows = 0.7, 4, 10_000
    labels = np.zeros(rows, int)
    shares = np.array([[len(own) / rows for own in partition.quantity(
        labels, clients, rng(seed), alpha=alpha, min_size=1)] for seed in range(300)])
    variance = (1 / clients) * (1 - 1 / clients) / (alpha * clients + 1)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / clients, atol=0.04)
    np.testing.assert_allclose(shares.var(), variance, rtol=0.1)

  def test_labels_are_iid(self):
    rows = partition.quantity(LABELS, 3, rng(), alpha=1., min_size=60)
    for own in rows:
      np.testing.assert_allclose(mix(LABELS, own), mix(LABELS, np.arange(400)), atol=0.15)


class NaturalTest(absltest.TestCase):

  def test_one_client_an_owner(self):
    rows = partition.natural(LABELS, 0, rng(), owner=OWNER)
    self.assertEqual([set(OWNER[own]) for own in rows], [{3}, {10}, {11}, {40}, {41}, {90}])
    self.assertEqual(sum(map(len, rows)), 400)

  def test_a_random_subset(self):
    chosen = set()
    for seed in range(20):
      rows = partition.natural(LABELS, 2, rng(seed), owner=OWNER)
      owners = [set(OWNER[own]) for own in rows]
      self.assertEqual([len(own) for own in owners], [1, 1])
      for own, (owner,) in zip(rows, owners, strict=True):
        self.assertLen(own, np.sum(owner == OWNER))
      chosen |= set.union(*owners)
    self.assertLen(chosen, 6)

  def test_refuses(self):
    for clients in (7, -1):
      with self.assertRaisesRegex(InputError, f'got clients={clients}; expected from 1 to 6'):
        partition.natural(LABELS, clients, rng(), owner=OWNER)
    with self.assertRaisesRegex(InputError, "got kind='natural'"):
      partition.natural(LABELS, 3, rng(), owner=None)


class DomainTest(parameterized.TestCase):

  @parameterized.parameters(6, 7, 20, 400)
  def test_every_client_is_in_one_domain(self, clients):
    rows = partition.domain(LABELS, clients, rng(), domain=OWNER)
    self.assertLen(rows, clients)
    self.assertEqual({len(set(OWNER[own])) for own in rows}, {1})
    self.assertEqual(sum(map(len, rows)), 400)

  def test_a_domain_gets_clients_by_its_size(self):
    domain = np.repeat([0, 1, 2], [300, 90, 10])
    rows = partition.domain(LABELS, 10, rng(), domain=domain)
    sizes = [[len(own) for own in rows if domain[own[0]] == d] for d in range(3)]
    self.assertEqual(sizes, [[43] * 6 + [42], [45, 45], [10]])

  def test_refuses(self):
    with self.assertRaisesRegex(InputError, 'got clients=5; expected at least 6'):
      partition.domain(LABELS, 5, rng(), domain=OWNER)
    with self.assertRaisesRegex(InputError, "got kind='domain'"):
      partition.domain(LABELS, 6, rng(), domain=None)


class ResampleTest(parameterized.TestCase):

  def test_every_client_draws_so_many_rows(self):
    rows = partition.resample(LABELS, 500, rng(), alpha=0.5, size=30, classes=6)
    self.assertEqual({len(own) for own in rows}, {30})
    self.assertGreaterEqual(min(map(np.min, rows)), 0)
    self.assertLess(max(map(np.max, rows)), 400)

  def test_rows_are_shared_and_repeat_only_where_a_class_is_too_small(self):
    rows = partition.resample(LABELS, 40, rng(), alpha=0.1, size=100, classes=6)
    self.assertLess(len(np.unique(np.concatenate(rows))), 40 * 100)
    totals = np.bincount(LABELS)
    repeated = 0
    for own in rows:
      for c, wanted in enumerate(np.bincount(LABELS[own], minlength=6)):
        distinct = len(np.unique(own[LABELS[own] == c]))
        if wanted <= totals[c]:
          self.assertEqual(distinct, wanted)
        else:
          repeated += 1
    self.assertGreater(repeated, 0)

  def test_equal_generators_give_equal_mixes_over_other_rows(self):
    others = np.repeat([0, 1, 2, 3, 4, 5], [5000, 10, 700, 900, 20, 300])
    same = np.random.default_rng(3).permutation(np.repeat([0, 1, 2, 3, 4, 5], 50))
    draw = partial(partition.resample, alpha=0.3, size=4000, classes=6)
    for a, b in zip(draw(others, 8, rng(5)), draw(same, 8, rng(5)), strict=True):
      np.testing.assert_allclose(mix(others, a), mix(same, b), atol=0.05)

  def test_a_class_without_rows_is_never_drawn_and_the_rest_keep_their_odds(self):
    full = np.repeat([0, 1, 2], 50)
    draw = partial(partition.resample, alpha=1., size=5000, classes=3)
    for whole, part in zip(draw(full, 5, rng(2)), draw(full[full > 0], 5, rng(2)), strict=True):
      odds = np.bincount(full[whole], minlength=3)[1:]
      np.testing.assert_allclose(
          odds / odds.sum(), np.bincount(full[full > 0][part], minlength=3)[1:] / 5000, atol=0.05)

  def test_mixes_are_dirichlet(self):
    alpha, labels = 0.6, np.arange(400) % 4
    rows = partition.resample(labels, 400, rng(), alpha=alpha, size=1000, classes=4)
    shares = np.array([np.bincount(labels[own], minlength=4) / 1000 for own in rows])
    np.testing.assert_allclose(shares.var(), .25 * .75 / (4 * alpha + 1), rtol=0.1)

  def test_rows_come_in_random_order(self):
    own, = partition.resample(np.repeat([0, 1], 500), 1, rng(), alpha=100., size=400, classes=2)
    first = np.mean(own[:200] >= 500)
    self.assertBetween(first, 0.3, 0.7)

  @parameterized.parameters((10**9, 1), (4, 2**63), (4, 10**10), (10**6, 300))
  def test_refuses_more_than_fits_into_memory(self, clients, size):
    with self.assertRaisesRegex(InputError, f'got .*clients={clients}; expected from 1 to '):
      partition.resample(LABELS, clients, rng(), alpha=1., size=size, classes=6)

  def test_refuses_an_empty_draw(self):
    with self.assertRaisesRegex(InputError, 'got size=0'):
      partition.resample(LABELS, 4, rng(), alpha=1., size=0, classes=6)


if __name__ == '__main__':
  absltest.main()
