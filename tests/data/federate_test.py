"""Who holds which examples for training, validation and test."""

from functools import partial

from absl.testing import absltest, parameterized
import jax
import numpy as np

from hmm_jax.data import federate, partition
from hmm_jax.types import Dataset, InputError, Server

ROWS = 300
KINDS = {
    'iid': lambda pool, rng: partition.iid(pool.y_train, 6, rng),
    'dirichlet': lambda pool, rng: partition.dirichlet(
        pool.y_train, 6, rng, alpha=0.3, min_size=5),
    'natural': lambda pool, rng: partition.natural(pool.y_train, 4, rng, owner=pool.client),
    'domain': lambda pool, rng: partition.domain(pool.y_train, 6, rng, domain=pool.domain),
    'resample': lambda pool, rng: partition.resample(
        pool.y_train, 6, rng, alpha=0.3, size=40, classes=4),
}


def dataset(*, test_rows=0):
  """A set whose inputs say their row number: x[row] = row, test rows follow on."""
  rng = np.random.default_rng(0)
  y = rng.choice(4, ROWS + test_rows, p=[.4, .3, .2, .1]).astype(np.int32)
  x = {'number': np.arange(ROWS + test_rows, dtype=np.int32)[:, None],
       'image': rng.integers(0, 256, (ROWS + test_rows, 3, 3, 1), dtype=np.uint8)}
  return Dataset('numbers', jax.tree.map(lambda a: a[:ROWS], x), y[:ROWS],
                 jax.tree.map(lambda a: a[ROWS:], x), y[ROWS:], classes=4,
                 client=rng.integers(0, 7, ROWS), domain=rng.integers(0, 3, ROWS))


def deal(kind='iid', *, test_rows=0, validation=0.2, test=0.1, seed=0,
         test_rows_of=federate.own_test):
  divide = federate.split_then_deal if kind == 'resample' else federate.deal_then_split
  return federate.federate(dataset(test_rows=test_rows), KINDS[kind], divide=divide,
                           validation=validation, test=test, seed=seed, test_rows=test_rows_of)


def both(kinds, test_rows):
  """Returns cases of a kind and a number of test examples of the set's own."""
  return [(f'{kind}_{count}', kind, count) for kind in kinds for count in test_rows]


def rows(held):
  return [list(index[:size]) for index, size in zip(held.index, held.size, strict=True)]


def flat(held):
  return set().union(*rows(held))


class FederateTest(parameterized.TestCase):

  @parameterized.named_parameters(both(KINDS, (0, 50)))
  def test_no_row_is_both_trained_on_and_held_out(self, kind, test_rows):
    made = deal(kind, test_rows=test_rows)
    train, validation, test = map(
        flat, (made.clients, made.validation.clients, made.test.clients))
    parts = [train, validation, test, set(made.test.rows)]
    self.assertEqual(sum(map(len, parts)), len(set().union(*parts)))
    self.assertTrue(all(parts))
    self.assertEqual(set(made.validation.rows), validation)

  @parameterized.named_parameters(both(('iid', 'dirichlet', 'domain'), (0, 50)))
  def test_every_row_has_its_place(self, kind, test_rows):
    made = deal(kind, test_rows=test_rows)
    places = [*rows(made.clients), *rows(made.validation.clients), *rows(made.test.clients),
              made.test.rows]
    np.testing.assert_array_equal(np.sort(np.concatenate(places)), np.arange(ROWS + test_rows))

  @parameterized.parameters(0, 50)
  def test_examples_hold_each_row_once(self, test_rows):
    data, made = dataset(test_rows=test_rows), deal(test_rows=test_rows)
    np.testing.assert_array_equal(
        made.examples.x['number'][:, 0], np.arange(ROWS + test_rows))
    np.testing.assert_array_equal(
        made.examples.x['image'], np.concatenate([data.x_train['image'], data.x_test['image']]))
    np.testing.assert_array_equal(made.examples.y, np.concatenate([data.y_train, data.y_test]))
    self.assertEqual(made.examples.x['image'].dtype, np.uint8)

  def test_all_row_numbers_and_labels_are_int32(self):
    made = deal('natural')
    for leaf in jax.tree.leaves((made.examples.y, made.clients, made.validation, made.test)):
      self.assertEqual(leaf.dtype, np.int32)

  def test_own_test_split_is_the_global_one(self):
    np.testing.assert_array_equal(
        deal(test_rows=50).test.rows, np.arange(ROWS, ROWS + 50))

  def test_a_stratified_fifth_where_there_is_none(self):
    y = dataset().y_train
    held_out = deal().test.rows
    np.testing.assert_array_equal(
        np.bincount(y[held_out]), [round(0.2 * n) for n in np.bincount(y)])
    self.assertGreater(np.ptp(held_out), 250)

  def test_fractions_of_each_client(self):
    made = deal('dirichlet', test_rows=50, validation=0.25, test=0.1)
    total = made.clients.size + made.validation.clients.size + made.test.clients.size
    np.testing.assert_array_equal(made.validation.clients.size, [round(.25 * n) for n in total])
    np.testing.assert_array_equal(made.test.clients.size, [round(.1 * n) for n in total])

  def test_fractions_of_a_resampling(self):
    made = deal('resample', test_rows=50, validation=0.25, test=0.1)
    np.testing.assert_array_equal(made.clients.size, [26] * 6)
    np.testing.assert_array_equal(made.validation.clients.size, [10] * 6)
    np.testing.assert_array_equal(made.test.clients.size, [4] * 6)

  def test_the_last_row_is_kept_to_train_on(self):
    for fractions in ((0.5, 0.45), (0.9, 0), (0, 0.9), (0.45, 0.5)):
      made = federate.federate(
          dataset(test_rows=5), lambda pool, rng: partition.iid(pool.y_train, 290, rng),
          divide=federate.deal_then_split, validation=fractions[0], test=fractions[1], seed=0)
      self.assertEqual(made.clients.size.min(), 1)

  @parameterized.parameters('iid', 'resample')
  def test_nothing_held_out(self, kind):
    made = deal(kind, test_rows=50, validation=0, test=0)
    self.assertEmpty(made.validation.rows)
    for held in (made.validation.clients, made.test.clients):
      self.assertEqual(held.index.shape, (6, 1))
      self.assertEqual(list(held.size), [0] * 6)

  def test_padding_and_ids(self):
    made = deal('dirichlet').clients
    self.assertEqual(made.index.shape, (6, made.size.max()))
    self.assertEqual(list(made.id), list(range(6)))
    self.assertLess(made.size.min(), made.size.max())
    for index, size in zip(made.index, made.size, strict=True):
      self.assertEqual(set(index[size:]) - {0}, set())

  @parameterized.named_parameters((kind, kind) for kind in KINDS)
  def test_depends_on_the_seed_alone(self, kind):
    first, again, other = (deal(kind, seed=seed, test_rows=50) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    self.assertNotEqual(flat(first.validation.clients), flat(other.validation.clients))

  @parameterized.named_parameters((kind, kind) for kind in KINDS)
  def test_the_seed_reaches_the_partition(self, kind):
    first, other = (deal(kind, seed=seed, test_rows=50, validation=0, test=0).clients
                    for seed in (1, 2))
    self.assertNotEqual([set(own) for own in rows(first)], [set(own) for own in rows(other)])

  @parameterized.parameters(0, 50)
  def test_owners_and_domains_follow_the_pool(self, test_rows):
    data = dataset(test_rows=test_rows)
    for kind, names, count in (('natural', data.client, 4), ('domain', data.domain, 3)):
      made = deal(kind, test_rows=test_rows)
      owners = [{int(names[row]) for part in (made.clients, made.validation.clients,
                                              made.test.clients) for row in rows(part)[k]}
                for k in range(len(made.clients.id))]
      self.assertEqual({len(own) for own in owners}, {1})
      self.assertLen(set().union(*owners), count)

  def test_resampling_has_one_mix_in_all_parts(self):
    data = dataset()._replace(
        x_train=np.zeros((8000, 1), np.float32), y_train=np.arange(8000, dtype=np.int32) % 4,
        x_test=np.zeros((0, 1), np.float32), y_test=np.zeros(0, np.int32), client=None, domain=None)
    made = federate.federate(
        data, lambda pool, rng: partition.resample(
            pool.y_train, 5, rng, alpha=0.5, size=3000, classes=4),
        divide=federate.split_then_deal, validation=0.3, test=0.3, seed=0)
    mixes = [
        np.array([np.bincount(data.y_train[own], minlength=4) / len(own) for own in rows(held)])
        for held in (made.clients, made.validation.clients, made.test.clients)]
    np.testing.assert_allclose(mixes[0], mixes[1], atol=0.06)
    np.testing.assert_allclose(mixes[0], mixes[2], atol=0.06)
    self.assertGreater(np.ptp(mixes[0], axis=0).max(), 0.3)  # and clients differ

  def test_inputs_are_shared_with_every_device_without_a_copy(self):
    for leaf in jax.tree.leaves(deal(test_rows=50).examples):
      for device in jax.devices():
        placed = jax.device_put(leaf, device)
        self.assertEqual(placed.unsafe_buffer_pointer(), leaf.ctypes.data)

  @parameterized.parameters(
      ({'validation': -.1}, 'got validation=-0.1'), ({'validation': 1}, 'got validation=1'),
      ({'test': np.nan}, 'got test=nan'), ({'test': 1.5}, 'got test=1.5'),
      ({'validation': 0.5, 'test': 0.5}, 'got validation=0.5 and test=0.5'),
      ({'validation': 1e-320}, 'got validation=1e-320'), ({'test': 1e-9}, 'got test=1e-09'),
      ({'seed': -1}, 'got seed=-1'))
  def test_refuses(self, settings, pattern):
    with self.assertRaisesRegex(InputError, pattern):
      deal(**settings)

  @parameterized.named_parameters(
      ('regression', 'y_train', lambda y: y / 3, 'got labels in float64 in the train split'),
      ('whole_floats', 'y_test', lambda y: y.astype(float), 'got labels in float64 in the test'),
      ('texts', 'y_train', lambda y: y.astype(str), 'got labels in <U'),
      ('wide', 'y_train', lambda y: np.int64(y) + 2**40, 'got labels from 1099511627776 to'),
      ('negative', 'y_test', lambda y: y - 1, 'got labels from -1 to 2 in the test'),
      ('beyond', 'y_train', lambda y: y + 1, 'got labels from 1 to 4 .* below classes=4'),
      ('fewer', 'y_train', lambda y: y[1:], f'got {ROWS} inputs and {ROWS - 1} labels'),
      ('wide_inputs', 'x_train', lambda x: np.float64(x), 'got inputs in float64 in the train'),
      ('long_inputs', 'x_test', lambda x: np.int64(x), 'got inputs in int64 in the test'))
  def test_nothing_is_cast_silently(self, field, change, pattern):
    data = dataset(test_rows=20)
    data = data._replace(**{field: jax.tree.map(change, getattr(data, field))})
    with self.assertRaisesRegex(InputError, pattern):
      federate.federate(data, KINDS['iid'], divide=federate.deal_then_split, validation=0, test=0,
                        seed=0)

  @parameterized.parameters(federate.deal_then_split, federate.split_then_deal)
  def test_names_a_client_without_rows(self, divide):
    def assign(pool, rng):
      del rng
      return [np.arange(len(pool.y_train)), np.zeros(0, int)]

    with self.assertRaisesRegex(InputError, 'got clients=2; client 1 holds no'):
      federate.federate(dataset(), assign, divide=divide, validation=0, test=0, seed=0)

  def test_a_table_of_clients_and_classes_that_does_not_fit_into_memory(self):
    data = dataset(test_rows=20)._replace(classes=10**6)
    assign = lambda pool, rng: partition.iid(pool.y_train, 290, rng)
    with self.assertRaisesRegex(InputError, 'got clients=290 with 1,000,000 classes'):
      federate.federate(data, assign, divide=federate.deal_then_split, validation=0, test=0, seed=0)

  def test_too_few_rows_for_a_test_split(self):
    data = dataset()._replace(x_train=np.zeros((4, 1), np.float32), y_train=np.array([0, 0, 1, 2]),
                              x_test=np.zeros((0, 1), np.float32), y_test=np.zeros(0, int),
                              client=None, domain=None)
    with self.assertRaisesRegex(InputError, "got dataset='numbers'; expected test"):
      federate.federate(data, KINDS['iid'], divide=federate.deal_then_split, validation=0, test=0,
                        seed=0)

  def test_a_pool_holds_no_inputs(self):
    pools = []

    def assign(pool, rng):
      pools.append(pool)
      return partition.iid(pool.y_train, 2, rng)

    for divide in (federate.deal_then_split, federate.split_then_deal):
      federate.federate(dataset(), assign, divide=divide, validation=0.1, test=0, seed=0)
    self.assertLen(pools, 3)
    self.assertEqual([pool.x_train for pool in pools], [()] * 3)
    self.assertEqual([len(pool.client) for pool in pools], [len(pool.y_train) for pool in pools])


class AlikeTest(parameterized.TestCase):

  @parameterized.named_parameters(both(KINDS, (0, 500)))
  def test_the_global_test_rows_are_those_dealt(self, kind, test_rows):
    made = deal(kind, test_rows=test_rows, test_rows_of=federate.alike_test)
    own = np.concatenate(rows(made.test.clients))
    self.assertLen(set(own), len(own))  # each to one client
    self.assertEqual(set(own), set(made.test.rows))
    self.assertEqual((flat(made.clients) | flat(made.validation.clients)) & set(own), set())
    np.testing.assert_array_equal(
        made.test.rows, deal(kind, test_rows=test_rows).test.rows)

  @parameterized.parameters(0, 0.3)
  def test_clients_keep_what_they_are_dealt(self, test):
    made = deal('dirichlet', test_rows=50, validation=0.25, test=test,
                    test_rows_of=federate.alike_test)
    whole = deal('dirichlet', test_rows=50, validation=0, test=0).clients
    for k, own in enumerate(rows(whole)):
      self.assertEqual(
          set(own), {*rows(made.clients)[k], *rows(made.validation.clients)[k]})
      self.assertEqual(made.validation.clients.size[k], round(0.25 * len(own)))

  @parameterized.parameters('dirichlet', 'natural')
  def test_a_client_has_its_share_of_every_class(self, kind):
    made = deal(kind, test_rows=500, test_rows_of=federate.alike_test)
    y = made.examples.y
    held, tested = (np.stack([np.bincount(y[own], minlength=4) for own in part]) for part in (
        [np.concatenate(own) for own in zip(rows(made.clients), rows(made.validation.clients))],
        rows(made.test.clients)))
    share = held / held.sum(axis=0) * np.bincount(y[made.test.rows], minlength=4)
    np.testing.assert_array_less(np.abs(tested - share), 1)

  def test_remainders_fall_to_every_client(self):
    labels = np.zeros(60, np.int32)
    data = dataset()._replace(x_train=labels[:, None], y_train=labels, x_test=labels[:3, None],
                              y_test=labels[:3], client=None, domain=None)
    sizes = np.mean([federate.federate(
        data, KINDS['iid'], divide=federate.deal_then_split, validation=0, test=0, seed=seed,
        test_rows=federate.alike_test).test.clients.size for seed in range(200)], axis=0)
    np.testing.assert_allclose(sizes, 0.5, atol=0.1)

  def test_a_class_without_an_owner_is_in_the_global_test_only(self):
    def assign(pool, rng):
      del rng
      return [np.flatnonzero(pool.y_train == c) for c in (0, 2)]

    made = federate.federate(dataset(test_rows=50), assign, divide=federate.deal_then_split,
                            validation=0, test=0, seed=0, test_rows=federate.alike_test)
    y = made.examples.y
    np.testing.assert_array_equal(made.test.rows, np.arange(ROWS, ROWS + 50))
    for own, c in zip(rows(made.test.clients), (0, 2), strict=True):
      self.assertEqual(set(own), set(ROWS + np.flatnonzero(y[ROWS:] == c)))

  def test_test_rows_of_unknown_classes_only(self):
    data = dataset(test_rows=50)
    data = data._replace(y_test=np.full(50, 4, np.int32), classes=5)
    made = federate.federate(data, KINDS['iid'], divide=federate.deal_then_split, validation=0,
                            test=0, seed=0, test_rows=federate.alike_test)
    self.assertEqual(list(made.test.clients.size), [0] * 6)

  def test_depends_on_the_seed_alone(self):
    def assign(pool, rng):
      del rng
      return np.split(np.arange(len(pool.y_train)), 6)

    first, again, other = (
        federate.federate(dataset(test_rows=50), assign, divide=federate.deal_then_split,
                         validation=0, test=0, seed=seed, test_rows=federate.alike_test)
        for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    self.assertNotEqual(rows(first.test.clients), rows(other.test.clients))


class PooledTest(parameterized.TestCase):

  @parameterized.parameters(0, 300)
  def test_other_labels_are_those_of_training_rows_only(self, test_rows):
    data = dataset(test_rows=test_rows)._replace(relabeled=np.zeros(ROWS, int))
    made = federate.federate(data, KINDS['iid'], divide=federate.deal_then_split, validation=0.2,
                            test=0.1, seed=0, test_rows=federate.pooled_test)
    jax.tree.map(np.testing.assert_array_equal, made,
                 deal(test_rows=test_rows, test_rows_of=federate.pooled_test))

  @parameterized.named_parameters(both(('iid', 'dirichlet', 'resample'), (0, 300)))
  def test_all_rows_are_dealt(self, kind, test_rows):
    made = deal(kind, test_rows=test_rows, test_rows_of=federate.pooled_test)
    train, validation, own = map(
        flat, (made.clients, made.validation.clients, made.test.clients))
    self.assertEqual(set(made.test.rows), own)
    self.assertEqual(sum(map(len, (train, validation, own))), len(train | validation | own))
    if kind != 'resample':
      self.assertEqual(train | validation | own, set(range(ROWS + test_rows)))
    if test_rows:
      for part in (train, validation, own):
        self.assertNotEmpty(part & set(range(ROWS, ROWS + test_rows)))

  def test_fractions_of_each_client(self):
    made = deal('dirichlet', test_rows=50, validation=0.25, test=0.2,
                    test_rows_of=federate.pooled_test)
    total = made.clients.size + made.validation.clients.size + made.test.clients.size
    self.assertEqual(sum(total), ROWS + 50)
    np.testing.assert_array_equal(made.validation.clients.size, [round(.25 * n) for n in total])
    np.testing.assert_array_equal(made.test.clients.size, [round(.2 * n) for n in total])

  def test_labels_of_both_splits_reach_the_partition(self):
    pools = []

    def assign(pool, rng):
      pools.append(pool)
      return partition.iid(pool.y_train, 2, rng)

    data = dataset(test_rows=50)
    federate.federate(data, assign, divide=federate.deal_then_split, validation=0, test=0.1, seed=0,
                     test_rows=federate.pooled_test)
    np.testing.assert_array_equal(pools[0].y_train, np.concatenate([data.y_train, data.y_test]))
    self.assertIsNone(pools[0].client)
    self.assertIsNone(pools[0].domain)

  @parameterized.parameters('natural', 'domain')
  def test_owners_of_a_set_without_a_test_split(self, kind):
    made = deal(kind, test_rows_of=federate.pooled_test)
    names = dataset().client if kind == 'natural' else dataset().domain
    for k, own in enumerate(rows(made.clients)):
      self.assertLen({int(names[row]) for row in [*own, *rows(made.test.clients)[k]]}, 1)

  def test_no_row_to_test_on(self):
    with self.assertRaisesRegex(InputError, 'got test=0 with test_rows=pooled'):
      deal(test=0, test_rows_of=federate.pooled_test)


class SubsetTest(parameterized.TestCase):

  @parameterized.parameters(0.1, 0.5)
  def test_is_a_random_share_of_both_splits(self, share):
    whole = dataset(test_rows=40)
    part = federate.subset(whole, share, seed=3)
    chosen = part.x_train['number'][:, 0]
    self.assertLen(set(chosen.tolist()), round(share * ROWS))
    self.assertNotEqual(chosen.tolist(), [*range(len(chosen))])
    for name in ('y_train', 'client', 'domain'):
      np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[chosen])
    np.testing.assert_array_equal(part.x_train['image'], whole.x_train['image'][chosen])
    held_out = part.x_test['number'][:, 0] - ROWS
    self.assertLen(set(held_out.tolist()), round(share * 40))
    np.testing.assert_array_equal(part.y_test, whole.y_test[held_out])
    again, other = (federate.subset(whole, share, seed=seed).x_train['number'] for seed in (3, 4))
    np.testing.assert_array_equal(again[:, 0], chosen)
    self.assertFalse((other[:, 0] == chosen).all())

  def test_all_of_it_and_sets_without_owners(self):
    whole = dataset()
    self.assertIs(federate.subset(whole, 1.0, seed=0), whole)
    part = federate.subset(whole._replace(client=None, domain=None), 0.5, seed=0)
    self.assertIsNone(part.client)
    self.assertEmpty(part.y_test)

  @parameterized.parameters(0.0, -0.5, 1.5, 1e-4)
  def test_refuses(self, share):
    with self.assertRaisesRegex(InputError, f'got subset={share}; expected .* of 300 training'):
      federate.subset(dataset(), share, seed=0)


def summary(made, data=None, **more):
  return dict(federate.describe(made, data or dataset(), **more))


class SummaryTest(absltest.TestCase):

  def test_label_counts(self):
    made = deal('dirichlet')
    counts = federate.label_counts(made, 5)
    self.assertEqual(counts.shape, (6, 5))
    for k, own in enumerate(rows(made.clients)):
      self.assertEqual(list(counts[k]), [sum(made.examples.y[own] == c) for c in range(5)])

  def test_description(self):
    made = federate.federate(
        dataset(test_rows=2000), partial(lambda pool, rng: partition.natural(
            pool.y_train, 2, rng, owner=np.repeat([0, 1, 2], [100, 10, 190]))),
        divide=federate.deal_then_split, validation=0.1, test=0.2, seed=0)
    table = summary(made)
    train, validation, own = (sum(held.size) for held in (
        made.clients, made.validation.clients, made.test.clients))
    low, high = sorted(made.clients.size)
    self.assertEqual(table, {
        'clients': '2',
        'training examples': f'{train} of 2,300',
        'training examples per client': f'{low} to {high}, median {(low + high) / 2:.0f}',
        'classes per client': table['classes per client'],
        'validation examples': f'{validation}',
        'test examples': f"2,000, and {own} of clients' own",
        'unused examples': f'{300 - train - validation - own}'})
    self.assertRegex(table['classes per client'], r'^[34] to 4, median 4$')

  def test_description_counts_shared_rows_once(self):
    made = deal('resample')
    table = summary(made)
    self.assertEqual(table['training examples'], f'{len(flat(made.clients))} of 300')
    self.assertLess(len(flat(made.clients)), sum(made.clients.size))

  def test_description_of_the_data_set(self):
    data = dataset()._replace(names=('a\x1b', *'bcd', 'e' * 50), facts=(('inputs', 'rounded'),))
    table = summary(deal('iid'), data)
    self.assertEqual(table['classes'], fr"5: 'a\x1b', 'b', 'c', ..., '{'e' * 20}...'")
    self.assertEqual(table['inputs'], 'rounded')

  def test_description_of_the_server_and_of_the_corrupted(self):
    made = deal()
    self.assertNoCommonElements(
        summary(made, source='held_out'),
        ['server examples', 'corrupted clients'])
    rows = np.arange(1500, dtype=np.int32)
    hybrid = made._replace(server=Server(made.examples, rows[:1200], rows[1200:]),
                           corrupted=np.arange(6) < 2)
    for source, said in (('', ''), ('held_out', ', from held_out')):
      self.assertEqual([*summary(hybrid, source=source).items()], [
          *summary(made).items(),
          ('server examples', f'1,200 to learn from, 300 held out{said}'),
          ('corrupted clients', '2')])


if __name__ == '__main__':
  absltest.main()
