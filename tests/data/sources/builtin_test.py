"""Sets that come with the library: digits and synthetic classes."""

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.data.sources import builtin
from hmm_jax.types import InputError


class DigitsTest(absltest.TestCase):

  def test_images_and_labels_are_scikit_learns(self):
    digits = builtin.digits()
    self.assertEqual(digits.x_train.shape, (1797, 8, 8, 1))
    self.assertEqual(digits.x_train.dtype, np.uint8)
    self.assertEqual(digits.x_train.max(), 16)
    self.assertEqual(digits.y_train.dtype, np.int32)
    np.testing.assert_array_equal(digits.y_train[:5], [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(digits.x_train[0, 0, :, 0], [0, 0, 5, 13, 9, 1, 0, 0])

  def test_has_no_test_split_of_its_own(self):
    digits = builtin.digits()
    self.assertEqual(digits.x_test.shape, (0, 8, 8, 1))
    self.assertEqual(digits.y_test.shape, (0,))
    self.assertIsNone(digits.x_test.base)


class SyntheticTest(parameterized.TestCase):

  @parameterized.parameters(
      {'shape': (0, 8, 1)}, {'shape': ()}, {'shape': (-1,)}, {'shape': (8.0,)}, {'shape': (True,)},
      {'shape': (None,)}, {'shape': ('8',)}, {'shape': (10**6, 10**6)}, {'shape': (2**63,)},
      {'rows': 10**12}, {'rows': 2**63}, {'classes': 2**31 - 1})
  def test_refuses_before_anything_is_drawn(self, **settings):
    with absltest.mock.patch.object(np.random, 'default_rng') as draws, self.assertRaisesRegex(
        InputError, rf'got .*synthetic.{next(iter(settings))}=.*; expected'):
      builtin.synthetic(**{'rows': 20, 'classes': 2, 'shape': (3,), 'seed': 0, **settings})
    draws.assert_not_called()

  def test_shapes_and_dtypes(self):
    made = builtin.synthetic(rows=103, classes=4, shape=(5, 5, 2), seed=0)
    self.assertEqual(made.x_train.shape, (103, 5, 5, 2))
    self.assertEqual(made.x_test.shape, (20, 5, 5, 2))
    self.assertEqual((made.x_train.dtype, made.y_train.dtype), (np.float32, np.int32))
    self.assertEqual(made.classes, 4)

  def test_classes_are_balanced_and_shuffled(self):
    y = builtin.synthetic(rows=102, classes=4, shape=(3,), seed=0).y_train
    self.assertEqual(sorted(np.bincount(y)), [25, 25, 26, 26])
    self.assertNotEqual(list(y), sorted(y))
    self.assertNotEqual(list(y), [row % 4 for row in range(102)])

  def test_depends_on_the_seed_alone(self):
    first, again, other = (
        builtin.synthetic(rows=20, classes=2, shape=(3,), seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.x_train, again.x_train)
    np.testing.assert_array_equal(first.y_test, again.y_test)
    self.assertFalse(np.array_equal(first.x_train, other.x_train))

  def test_both_splits_share_prototypes_of_one_size_in_any_dimension(self):
    for shape in ((10,), (16, 16, 3)):
      made = builtin.synthetic(rows=2000, classes=4, shape=shape, seed=0)
      means = np.stack([made.x_train[made.y_train == c].mean(axis=0).ravel() for c in range(4)])
      distance = np.linalg.norm(means[:, None] - means[None], axis=-1)[~np.eye(4, dtype=bool)]
      self.assertBetween(distance.mean(), 3, 6)
      test = made.x_test.reshape(len(made.x_test), -1)
      nearest = np.linalg.norm(test[:, None] - means[None], axis=-1).argmin(axis=1)
      self.assertGreater((nearest == made.y_test).mean(), 0.8)


if __name__ == '__main__':
  absltest.main()
