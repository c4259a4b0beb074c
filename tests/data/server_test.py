"""Examples of the server: which are taken, how others are made to fit, how they are split."""

import re

from absl.testing import absltest, parameterized
import jax
import numpy as np

from hmm_jax.data import server
from hmm_jax.types import Dataset, Examples, InputError

ROWS = 300


def dataset():
  """A set whose inputs say their row number: x[row] = row."""
  rng = np.random.default_rng(0)
  y = rng.choice(4, ROWS, p=[.4, .3, .2, .1])
  x = {'number': np.arange(ROWS, dtype=np.int32)[:, None],
       'image': rng.integers(0, 256, (ROWS, 3, 3, 1), dtype=np.uint8)}
  return Dataset('numbers', x, y, jax.tree.map(lambda a: a[:20], x), y[:20], classes=4,
                 client=rng.integers(0, 7, ROWS), domain=rng.integers(0, 3, ROWS),
                 relabeled=rng.integers(0, 4, ROWS))


def images(x, y=None, *, name='images', classes=4):
  y = np.arange(len(x), dtype=np.int32) % classes if y is None else y
  return Dataset(name, x, y, x[:0], y[:0], classes=classes)


def numbers(x):
  return x['number'][:, 0]


class TakenTest(parameterized.TestCase):
  """Rows that leave the training set."""

  def check_rows(self, data, left, examples):
    """Checks that every array follows its rows."""
    for x, y in ((left.x_train, left.y_train), examples):
      np.testing.assert_array_equal(y, data.y_train[numbers(x)])
      np.testing.assert_array_equal(x['image'], data.x_train['image'][numbers(x)])
    for name in ('client', 'domain', 'relabeled'):
      np.testing.assert_array_equal(
          getattr(left, name), getattr(data, name)[numbers(left.x_train)])
    self.assertEqual(examples.y.dtype, np.int32)
    self.assertLen(left.x_test['number'], 20)

  @parameterized.parameters(2, 7, 100, ROWS - 1)
  def test_exactly_so_many_rows_of_all_classes(self, size):
    data = dataset()
    left, examples = server.held_out(data, size, 0)
    self.check_rows(data, left, examples)
    self.assertLen(examples.y, size)
    self.assertEqual(sorted(numbers(examples.x)), list(numbers(examples.x)))
    self.assertEqual(sorted([*numbers(left.x_train), *numbers(examples.x)]), list(range(ROWS)))
    share = np.bincount(data.y_train) * size / ROWS
    np.testing.assert_array_less(np.abs(np.bincount(examples.y, minlength=4) - share), 1)

  def test_the_rows_are_drawn(self):
    first, again, other = (numbers(server.held_out(dataset(), 50, seed)[1].x)
                           for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    self.assertNotEqual(list(first), list(other))
    self.assertGreater(np.ptp(first), 250)

  def test_the_remainders_are_drawn(self):
    y = np.arange(40) % 4
    counts = np.mean([np.bincount(server.held_out(images(np.zeros((40, 2)), y), 2, seed)[1].y,
                                  minlength=4) for seed in range(200)], axis=0)
    np.testing.assert_allclose(counts, 0.5, atol=0.1)

  @parameterized.parameters(0, 1, ROWS)
  def test_how_many_rows_may_be_held_out(self, size):
    with self.assertRaisesRegex(InputError, f'got size={size} with source=held_out; '
                                'expected from 2 to 299'):
      server.held_out(dataset(), size, 0)

  def test_a_domain_leaves_as_a_whole(self):
    data = dataset()
    left, examples = server.of_domain(data, 1, 40, 0)
    self.check_rows(data, left, examples)
    self.assertLen(examples.y, 40)
    np.testing.assert_array_equal(data.domain[numbers(examples.x)], 1)
    np.testing.assert_array_equal(numbers(left.x_train), np.flatnonzero(data.domain != 1))
    share = np.bincount(data.y_train[data.domain == 1]) * 40 / np.sum(data.domain == 1)
    np.testing.assert_array_less(np.abs(np.bincount(examples.y) - share), 1)

  def test_all_of_a_domain(self):
    size = int(np.sum(dataset().domain == 2))
    _, examples = server.of_domain(dataset(), 2, size, 0)
    self.assertLen(set(numbers(examples.x)), size)

  @parameterized.parameters(0, 1, 1 + int(np.sum(dataset().domain == 1)))
  def test_how_many_rows_of_a_domain(self, size):
    most = np.sum(dataset().domain == 1)
    with self.assertRaisesRegex(InputError, f'got size={size} with source=domain:1; '
                                f'expected from 2 to {most}'):
      server.of_domain(dataset(), 1, size, 0)

  @parameterized.parameters(
      (dataset().domain, 3, 'has 0, 1, 2'), (None, 0, 'has none'),
      (np.zeros(ROWS, int), 0, 'has 0'))
  def test_no_such_domain(self, domains, domain, has):
    with self.assertRaisesRegex(InputError, f'got source=domain:{domain}; .* {has}'):
      server.of_domain(dataset()._replace(domain=domains), domain, 10, 0)


class OtherTest(parameterized.TestCase):
  """Rows of another data set."""

  @parameterized.parameters(
      ((), ('1', '3'), [1, 3], 4),
      (('a', 'b', 'c'), ('c', 'a'), [2, 0], 3),
      ((), ('1', '12'), [1, 4], 5),  # 12 is none of the clients' four classes, nor becomes one
      (('1', '2', '3', '4'), (), [4, 0], 5))
  def test_classes_are_those_of_the_same_name(self, ours, theirs, wanted, count):
    x = np.zeros((2, 3, 3, 1), np.uint8)
    clients = images(x, classes=len(ours) or 4)._replace(names=ours)
    source = images(x, classes=2)._replace(names=theirs, y_test=np.array([1]))
    made = server.aligned(source, clients)
    self.assertEqual((made.y_train.tolist(), made.classes), (wanted, count))
    self.assertEqual(made.y_test.tolist(), wanted[1:])

  def test_classes_without_names_stay(self):
    x = np.zeros((2, 3, 3, 1), np.uint8)
    source = images(x, classes=20)
    self.assertIs(server.aligned(source, images(x)), source)

  def test_rows_keep_the_labels_of_their_set(self):
    y = np.arange(1200) % 8
    x = np.arange(1200, dtype=np.float32)[:, None]
    far = images(x, y, name='far', classes=8)
    first, other = (server.other(images(x), far, 400, seed) for seed in (0, 1))
    rows = first.x[:, 0].astype(int)
    self.assertLen(set(rows), 400)
    np.testing.assert_array_equal(first.y, y[rows])
    self.assertEqual(first.y.dtype, np.int32)
    self.assertEqual(np.bincount(first.y).tolist(), [50] * 8)
    self.assertNotEqual(list(rows), list(other.x[:, 0].astype(int)))
    with self.assertRaisesRegex(InputError, 'got size=1201 with source=far'):
      server.other(images(x), far, 1201, 0)

  @parameterized.parameters((4, 1), (4, 3), (9, 1), (16, 3))
  def test_any_size_and_colors(self, side, channels):
    x = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    like = np.zeros((5, side, side + 1, channels), np.uint8)
    examples = server.other(images(like), images(x), 280, 0)
    self.assertEqual((examples.x.shape, examples.x.dtype),
                     ((280, side, side + 1, channels), np.uint8))

  def test_means_of_blocks(self):
    x = np.kron(np.array([[10, 20], [30, 250]]), np.ones((8, 8))).astype(np.uint8)
    x = np.broadcast_to(x[None, ..., None], (300, 16, 16, 1))
    got = server.other(images(np.zeros((5, 2, 2, 1), np.uint8)), images(x), 290, 0).x
    # The triangle that averages is as wide as two blocks, cut off at the edge: 6/8 of its
    # whole lie in the pixel's own block and 1/8 in the other.
    one = np.array([[6, 1], [1, 6]]) / 7
    wanted = one @ [[10, 20], [30, 250]] @ one
    np.testing.assert_allclose(got, np.broadcast_to(wanted[..., None], got.shape), atol=0.6)

  def test_resizing_is_antialiased(self):
    x = np.broadcast_to(np.arange(32) % 2, (4, 32, 32))[..., None].astype(np.float32)
    got = server.other(images(np.zeros((5, 8, 8, 1), np.float32)), images(x), 4, 0).x
    np.testing.assert_allclose(got[:, :, 1:-1], 0.5, atol=0.05)

  def test_colors_and_gray(self):
    colors = np.zeros((4, 2, 2, 3), np.uint8)
    colors[:] = np.reshape([[200, 0, 0], [0, 200, 0], [0, 0, 200], [255] * 3], (4, 1, 1, 3))
    gray = server.other(images(np.zeros((5, 2, 2, 1), np.uint8)), images(colors), 4, 0).x
    self.assertEqual(gray[:, 1, 0, 0].tolist(), [60, 117, 23, 255])
    back = server.other(images(np.zeros((5, 2, 2, 3), np.uint8)), images(gray), 4, 0).x
    np.testing.assert_array_equal(back, np.repeat(gray, 3, axis=-1))

  @parameterized.parameters(
      # A whole number of levels, one between two of them, and what stays as it is.
      (np.uint8, np.uint8, [0, 17, 255], [0, 17, 255]),
      (np.uint8, np.float32, [0, 51, 255], [0, 0.2, 1]),
      (np.float32, np.uint8, [0, 0.503, 1], [0, 128, 255]),
      (np.float32, np.float32, [-7, 0.503, 9], [-7, 0.503, 9]))
  def test_types(self, stored, wanted, values, expected):
    x = np.array(values, stored)[:, None]
    got = server.other(images(np.zeros((5, 1), wanted)), images(x), 3, 0).x
    self.assertEqual(got.dtype, wanted)
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-6)

  @parameterized.parameters(
      ((8, 8, 1), np.float32, (5,), np.float32),
      ((5,), np.float32, (8, 8, 1), np.uint8),
      ((6,), np.float32, (5,), np.float32),
      ((8, 8, 2), np.uint8, (4, 4, 2), np.uint8),
      ((8, 8, 4), np.uint8, (8, 8, 3), np.uint8),
      ((5,), np.int32, (5,), np.int32),
      ((5,), np.float32, (5,), np.int32),
      ((5,), np.int32, (5,), np.float32))
  def test_what_does_not_fit(self, stored, dtype, wanted, like):
    said = (f'got source=far with {np.dtype(dtype)} inputs of shape {stored}; ',
            f'the {np.dtype(like)} inputs of shape {wanted}')
    with self.assertRaisesRegex(InputError, '.*'.join(map(re.escape, said))):
      server.other(images(np.zeros((9, *wanted), like)),
                   images(np.zeros((9, *stored), dtype), name='far'), 2, 0)

  @parameterized.parameters(([-0.1, 1],), ([0, 1.1],))
  def test_floats_that_are_no_pixels(self, values):
    with self.assertRaisesRegex(InputError, 'got source=far with float32 inputs of shape .* from '
                                f'{values[0]} to {values[1]}'):
      server.other(images(np.zeros((5, 1), np.uint8)),
                   images(np.array(values, np.float32)[:, None], name='far'), 2, 0)

  def test_floats_that_overflow_in_the_type_of_the_clients(self):
    source, clients = np.full((2, 3, 3, 1), 1e6, np.float32), np.zeros((2, 3, 3, 1), np.float16)
    with self.assertRaisesRegex(InputError, 'got source=images .* not finite in float16'):
      server.other(images(clients), images(source), 2, 0)

  def test_labels_are_not_cast(self):
    x = np.zeros((2, 3, 3, 1), np.uint8)
    for y in (np.array([0.5, 1.5]), np.array([2**40, 1])):
      with self.assertRaisesRegex(InputError, 'got labels'):
        server.other(images(x), images(x, y), 2, 0)

  def test_several_modalities(self):
    one = images(np.zeros((9, 4, 4, 3)), name='near')
    both = one._replace(name='far', x_train={'image': one.x_train, 'text': np.zeros((9, 2))})
    for dataset, source in ((both, one), (one, both)):
      with self.assertRaisesRegex(InputError, f'got source={source.name}, where far has'):
        server.other(dataset, source, 2, 0)


class CentralTest(parameterized.TestCase):

  def examples(self, size=100):
    y = np.random.default_rng(0).choice(4, size, p=[.4, .3, .2, .1]).astype(np.int32)
    return Examples(np.arange(size)[:, None], y)

  @parameterized.parameters((0.0, 0), (0.1, 10), (0.25, 25), (1.0, 100))
  def test_a_share_of_the_labels_is_wrong(self, share, count):
    clean = self.examples()
    noisy = server.noisy_labels(clean, share, 4, 0)
    self.assertEqual(np.sum(noisy.y != clean.y), count)
    self.assertEqual(noisy.y.dtype, np.int32)
    self.assertTrue(np.all((noisy.y >= 0) & (noisy.y < 4)))
    np.testing.assert_array_equal(clean.y, self.examples().y)  # and the caller's stay

  def test_shares_of_nothing(self):
    with self.assertRaisesRegex(InputError, 'got noise=1e-320; '):
      server.noisy_labels(self.examples(), 1e-320, 4, 0)
    with self.assertRaisesRegex(InputError, 'got held_out=1e-09; '):
      server.central(self.examples(), 1e-9, 0)

  def test_wrong_labels_are_uniform(self):
    clean = Examples(np.zeros((9000, 1)), np.ones(9000, np.int32))
    noisy = [server.noisy_labels(clean, 1.0, 4, seed).y for seed in (0, 0, 1)]
    np.testing.assert_allclose(np.bincount(noisy[0], minlength=4), [3000, 0, 3000, 3000], atol=200)
    np.testing.assert_array_equal(noisy[0], noisy[1])
    self.assertTrue(np.any(noisy[0] != noisy[2]))

  def test_one_class_has_no_other(self):
    clean = Examples(np.zeros((9, 1)), np.zeros(9, np.int32))
    self.assertEqual(server.noisy_labels(clean, 1.0, 1, 0).y.tolist(), [0] * 9)

  @parameterized.parameters((100, 0.25, 25), (100, 0.0, 1), (100, 1.0, 99), (2, 0.2, 1),
                            (3, 0.9, 2))
  def test_rows_to_learn_from_and_to_judge_by(self, size, share, judged):
    examples = self.examples(size)
    made = server.central(examples, share, 0)
    self.assertLen(made.held_out, judged)
    self.assertEqual(sorted([*made.search, *made.held_out]), list(range(size)))
    self.assertEqual({made.search.dtype, made.held_out.dtype}, {np.dtype(np.int32)})
    jax.tree.map(np.testing.assert_array_equal, made.examples, examples)
    expected = np.bincount(examples.y, minlength=4) * judged / size
    counts = np.bincount(examples.y[made.held_out], minlength=4)
    np.testing.assert_array_less(np.abs(counts - expected), 1)

  def test_the_split_is_drawn(self):
    first, again, other = (server.central(self.examples(), 0.5, s).held_out for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    self.assertNotEqual(list(first), list(other))

  @parameterized.parameters(0, 1)
  def test_one_row_is_too_few(self, size):
    with self.assertRaisesRegex(InputError, f'got size={size}; expected at least 2'):
      server.central(self.examples(size), 0.5, 0)


if __name__ == '__main__':
  absltest.main()
