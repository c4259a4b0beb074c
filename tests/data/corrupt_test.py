"""Who is corrupted, and what becomes of labels and inputs."""

import re

from absl.testing import absltest, parameterized
import jax
import numpy as np

from hmm_jax.data import corrupt, federate, partition
from hmm_jax.types import Dataset, InputError

ROWS, TEST, CLASSES, CLIENTS = 4000, 400, 4, 10
KINDS = {
    'symmetric': lambda data: corrupt.symmetric(0.5, CLASSES),
    'pairwise': lambda data: corrupt.pairwise(0.5, CLASSES),
    'random': lambda data: corrupt.random(0.5, CLASSES),
    'pixels': lambda data: corrupt.pixels(0.5, data.x_train),
    'relabeled': lambda data: corrupt.relabeled((data.y_train + 1) % CLASSES),
}


def dataset(dtype=np.uint8):
  """Images [2, 2, 3] of uint8, or floats whose channels have deviations 1, 10 and 0."""
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (ROWS + TEST, 2, 2, 3), dtype=np.uint8)
  if dtype == np.float32:
    x = (rng.standard_normal(x.shape) * [1, 10, 0] + 5).astype(np.float32)
  y = rng.integers(0, CLASSES, ROWS + TEST).astype(np.int32)
  return Dataset('images', x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:], CLASSES)


def deal(data):
  return federate.federate(
      data, lambda pool, rng: partition.iid(pool.y_train, CLIENTS, rng),
      divide=federate.deal_then_split, validation=0.2, test=0.1, seed=0)


def corrupted(change, *, share=0.3, seed=0, data=None):
  return corrupt.corrupt(deal(data or dataset()), change, share=share, seed=seed)


def own(held, who):
  return np.concatenate([held.index[k, :held.size[k]] for k in np.flatnonzero(who)])


def bad_rows(made):
  """Returns the training and validation rows of the corrupted clients."""
  return np.concatenate([own(made.clients, made.corrupted),
                         own(made.validation.clients, made.corrupted)])


class WhoTest(parameterized.TestCase):

  @parameterized.named_parameters((kind, kind) for kind in KINDS)
  def test_examples_of_the_corrupted_change_and_no_others(self, kind):
    data = dataset()
    clean, made = deal(data), corrupted(KINDS[kind](data))
    changed = np.flatnonzero((clean.examples.y != made.examples.y)
                             | (clean.examples.x != made.examples.x).any(axis=(1, 2, 3)))
    self.assertContainsSubset(changed, bad_rows(made))
    for held in (made.clients, made.validation.clients):
      for k in np.flatnonzero(made.corrupted):
        self.assertNotEmpty(np.intersect1d(changed, held.index[k, :held.size[k]]))
    jax.tree.map(np.testing.assert_array_equal,
                 (clean.clients, clean.validation, clean.test),
                 (made.clients, made.validation, made.test))

  @parameterized.named_parameters((kind, kind) for kind in KINDS)
  def test_labels_or_inputs(self, kind):
    data = dataset()
    made = corrupted(KINDS[kind](data))
    self.assertEqual(np.array_equal(made.examples.x, np.append(data.x_train, data.x_test, axis=0)),
                     kind != 'pixels')
    self.assertEqual(np.array_equal(made.examples.y, np.append(data.y_train, data.y_test)),
                     kind == 'pixels')

  @parameterized.named_parameters((kind, kind) for kind in KINDS)
  def test_the_data_set_is_nobodys_to_change(self, kind):
    data = dataset()
    corrupted(KINDS[kind](data), data=data)
    np.testing.assert_array_equal(data.x_train, dataset().x_train)
    np.testing.assert_array_equal(data.y_train, dataset().y_train)

  @parameterized.named_parameters((kind, kind) for kind in KINDS)
  def test_memory_stays_where_it_is(self, kind):
    before = deal(dataset())
    after = corrupt.corrupt(before, KINDS[kind](dataset()), share=0.3, seed=0)
    for old, new in zip(before.examples, after.examples):
      self.assertEqual((old.ctypes.data, old.dtype), (new.ctypes.data, new.dtype))
      self.assertEqual(new.ctypes.data % 64, 0)

  def test_who_depends_on_the_seed_alone(self):
    data = dataset()
    who = [list(corrupted(make(data)).corrupted) for make in KINDS.values()]
    who.append(list(corrupted(corrupt.pairwise(1.0, CLASSES)).corrupted))
    self.assertEqual(who, [who[0]] * 6)
    self.assertNotEqual(list(corrupted(KINDS['random'](data), seed=1).corrupted), who[0])

  @parameterized.parameters((0.04, 0), (0.06, 1), (0.3, 3), (0.96, 10), (1.0, 10))
  def test_how_many(self, share, count):
    made = corrupted(corrupt.pairwise(1.0, CLASSES), share=share)
    if count:
      self.assertEqual((made.corrupted.sum(), made.corrupted.dtype), (count, bool))
      self.assertEqual(made.corrupted.shape, (CLIENTS,))
    else:
      self.assertIsNone(made.corrupted)
      np.testing.assert_array_equal(made.examples.y, deal(dataset()).examples.y)

  def test_a_larger_share_adds_clients(self):
    few, many = (corrupted(corrupt.random(0.5, CLASSES), share=share) for share in (0.2, 0.6))
    self.assertTrue(np.all(many.corrupted[few.corrupted]))
    rows = bad_rows(few)
    np.testing.assert_array_equal(few.examples.y[rows], many.examples.y[rows])

  def test_clients_have_noise_of_their_own(self):
    data = dataset()
    zeros = data._replace(x_train=np.full_like(data.x_train, 127))
    made = corrupted(corrupt.pixels(0.1, zeros.x_train), data=zeros)
    first, second = np.flatnonzero(made.corrupted)[:2]
    self.assertFalse(np.array_equal(made.examples.x[made.clients.index[first, 0]],
                                    made.examples.x[made.clients.index[second, 0]]))
    other = corrupted(corrupt.pixels(0.1, zeros.x_train), data=zeros, share=1.0, seed=1)
    self.assertFalse(np.array_equal(made.examples.x[made.clients.index[first, 0]],
                                    other.examples.x[made.clients.index[first, 0]]))

  def test_who_is_not_drawn_as_the_partition_is(self):
    who = np.flatnonzero(corrupted(corrupt.pairwise(1.0, CLASSES)).corrupted)
    for stream in range(5):
      drawn = np.random.default_rng([0, stream]).permutation(CLIENTS)[:3]
      self.assertNotEqual(sorted(drawn), list(who))

  def test_rows_of_several_clients_are_refused(self):
    made = federate.federate(
        dataset(), lambda pool, rng: partition.resample(
            pool.y_train, CLIENTS, rng, alpha=1.0, size=500, classes=CLASSES),
        divide=federate.split_then_deal, validation=0.1, test=0.1, seed=0)
    with self.assertRaisesRegex(InputError, 'got clients=0.3 .* partition.kind'):
      corrupt.corrupt(made, KINDS['random'](dataset()), share=0.3, seed=0)
    self.assertIs(corrupt.corrupt(made, KINDS['random'](dataset()), share=0.0, seed=0), made)


class LabelsTest(parameterized.TestCase):

  def steps(self, change):
    """Returns by how much the labels of corrupted rows have gone on: shares [C]."""
    made, clean = corrupted(change), deal(dataset())
    rows = bad_rows(made)
    self.assertEqual(set(made.examples.y[rows]), set(range(CLASSES)))
    steps = (made.examples.y[rows] - clean.examples.y[rows]) % CLASSES
    return np.bincount(steps, minlength=CLASSES) / len(rows)

  @parameterized.named_parameters(
      ('symmetric', corrupt.symmetric, 0.6, [.4, .2, .2, .2]),
      ('symmetric_always', corrupt.symmetric, 1.0, [0, 1 / 3, 1 / 3, 1 / 3]),
      ('pairwise', corrupt.pairwise, 0.6, [.4, .6, 0, 0]),
      ('random', corrupt.random, 0.6, [.55, .15, .15, .15]),
      ('random_always', corrupt.random, 1.0, [.25, .25, .25, .25]))
  def test_what_labels_become(self, make, rate, shares):
    got = self.steps(make(rate, CLASSES))
    np.testing.assert_allclose(got, shares, atol=0.06)
    np.testing.assert_array_equal(got[np.equal(shares, 0)], 0)

  @parameterized.named_parameters(
      (make.__name__, make) for make in (corrupt.symmetric, corrupt.pairwise, corrupt.random))
  def test_a_rate_is_a_probability(self, make):
    self.assertEqual(self.steps(make(0.0, CLASSES)).tolist(), [1, 0, 0, 0])
    for rate in (-0.1, 1.1, 1e39, 1e-320):
      with self.assertRaisesRegex(InputError, re.escape(f'got rate={rate}; ')):
        make(rate, CLASSES)

  def test_one_class_has_no_other(self):
    data = dataset()
    data = data._replace(y_train=0 * data.y_train, y_test=0 * data.y_test, classes=1)
    made = corrupted(corrupt.symmetric(1.0, 1), data=data)
    np.testing.assert_array_equal(made.examples.y[:ROWS], 0)

  def test_labels_of_another_source(self):
    labels = np.random.default_rng(1).integers(0, CLASSES, ROWS)
    made = corrupted(corrupt.relabeled(labels))
    rows = bad_rows(made)
    np.testing.assert_array_equal(made.examples.y[rows], labels[rows])


class PixelsTest(parameterized.TestCase):

  def test_images_stay_on_their_scale(self):
    data = dataset()
    made = corrupted(corrupt.pixels(0.4, data.x_train), data=data)
    noisy = made.examples.x[bad_rows(made)]
    self.assertGreater(np.mean(noisy == 0), 0.1)
    self.assertGreater(np.mean(noisy == 255), 0.1)

  @parameterized.parameters(0.02, 0.1)
  def test_the_deviation_of_images(self, rate):
    data = dataset()
    gray = data._replace(x_train=np.full_like(data.x_train, 127))
    made = corrupted(corrupt.pixels(rate, gray.x_train), data=gray)
    noise = made.examples.x[bad_rows(made)] - 127.
    np.testing.assert_allclose(noise.std(), 255 * rate, rtol=0.03)
    np.testing.assert_allclose(noise.mean(), 0, atol=3 * rate)

  def test_images_are_rounded(self):
    data = dataset()
    black = data._replace(x_train=np.zeros_like(data.x_train))
    made = corrupted(corrupt.pixels(0.002, black.x_train), data=black)
    # A deviation of 0.51 levels: from half a level on it is 1, at odds of one in six.
    np.testing.assert_allclose(made.examples.x[bad_rows(made)].mean(), 0.165, atol=0.02)

  @parameterized.parameters(0.5, 2.0)
  def test_floats_in_units_of_their_features(self, rate):
    data = dataset(np.float32)
    clean, made = deal(data), corrupted(corrupt.pixels(rate, data.x_train), data=data)
    rows = bad_rows(made)
    noise = made.examples.x[rows] - clean.examples.x[rows]
    np.testing.assert_allclose(
        noise.std(axis=(0, 1, 2)), [rate, 10 * rate, 0], rtol=0.05, atol=1e-6)

  def test_each_array_of_the_inputs(self):
    data = dataset()
    both = data._replace(x_train={'a': data.x_train, 'b': data.x_train / np.float32(255)},
                         x_test={'a': data.x_test, 'b': data.x_test / np.float32(255)})
    clean, made = deal(both), corrupted(corrupt.pixels(0.5, both.x_train), data=both)
    for name in 'ab':
      self.assertTrue(np.any(clean.examples.x[name] != made.examples.x[name]))

  @parameterized.parameters(1e39, 1e308, 1e-320, -1.0, np.inf, np.nan)
  def test_noise_that_means_nothing(self, rate):
    for dtype in (np.uint8, np.float32):
      with self.assertRaisesRegex(InputError, re.escape(f'got rate={rate}; ')):
        corrupt.pixels(rate, dataset(dtype).x_train)

  def test_noise_that_a_type_cannot_hold(self):
    data = dataset(np.float32)
    data = data._replace(x_train=data.x_train.astype(np.float16),
                         x_test=data.x_test.astype(np.float16))
    with self.assertRaisesRegex(InputError, 'got rate=1000 with float16 inputs'):
      corrupted(corrupt.pixels(1000, 90 * data.x_train), data=data)

  def test_a_share_of_no_client_of_any_data_set(self):
    with self.assertRaisesRegex(InputError, 'got clients=1e-09; '):
      corrupted(corrupt.pairwise(1.0, CLASSES), share=1e-9)

  def test_tokens_have_no_noise(self):
    with self.assertRaisesRegex(InputError, r'got kind=pixels with int32 inputs of shape \(8,\)'):
      corrupt.pixels(0.5, np.zeros((5, 8), np.int32))


if __name__ == '__main__':
  absltest.main()
