"""What a data set may hold, whoever made it."""

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np

from hmm_jax.data import values
from hmm_jax.types import Dataset, InputError

X = np.arange(30, dtype=np.float32).reshape(10, 3)
Y = np.arange(10, dtype=np.int32) % 3


def dataset(**fields):
  good = {'name': 'own', 'x_train': X, 'y_train': Y, 'x_test': X[:4], 'y_test': Y[:4], 'classes': 3,
          'client': Y, 'domain': Y, 'relabeled': Y}
  return Dataset(**good | fields)


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      {}, {'y_train': np.int64(Y)}, {'x_test': X[:0], 'y_test': Y[:0]}, {'names': (*'abc',)},
      {'x_train': X.astype(jnp.bfloat16), 'x_test': X[:4].astype(jnp.bfloat16)},
      {'x_train': {'a': X, 'b': Y[:, None]}, 'x_test': {'a': X[:4], 'b': Y[:4, None]}},
      {'client': None, 'domain': np.uint64(Y) + 2**63, 'relabeled': np.int8(Y)})
  def test_takes(self, **fields):
    values.check(dataset(**fields))

  @parameterized.named_parameters(
      ('float_labels', {'y_train': Y + 0.5}, 'float64'),
      ('whole_float_labels', {'y_test': np.float32(Y[:4])}, 'float32'),
      ('bool_labels', {'y_train': Y > 0}, 'bool'),
      ('listed_labels', {'y_train': Y.tolist()}, 'labels in object'),
      ('texts', {'y_train': Y.astype(str)}, '<U'),
      ('wide', {'y_train': np.int64(Y) + 2**40}, str(2**40)),
      ('one_hot', {'y_train': np.eye(3, dtype=int)[Y]}, r'\(10, 3\)'),
      ('wide_inputs', {'x_train': np.float64(X)}, 'float64'),
      ('bool_inputs', {'x_test': X[:4] > 3}, 'bool'),
      ('listed_inputs', {'x_train': X.tolist()}, 'inputs in object'),
      ('big_endian', {'x_train': X.astype('>f4')}, '>f4'),
      ('other_type', {'x_test': np.uint8(X[:4])}, 'uint8'),
      ('other_shape', {'x_test': X[:4, :2]}, r'\(2,\)'),
      ('other_modalities', {'x_test': {'a': X[:4], 'b': X[:4]}}, 'test split'),
      ('fewer', {'x_train': X[1:]}, '9 inputs and 10'),
      ('none', {'x_train': X[:0], 'y_train': Y[:0]}, '0 examples in the train'),
      ('an_axis_of_0', {'x_train': X[:, :0], 'x_test': X[:4, :0]}, r'\(0,\)'),
      ('nan', {'x_train': np.where(X > 7, np.float32(np.nan), X)}, 'NaN'),
      ('minus_infinity', {'x_test': np.where(X > 7, np.float32(-np.inf), X)[:4]}, 'infinity'),
      ('bfloat16', {'x_train': (X + np.inf).astype(jnp.bfloat16)}, 'NaN'),
      ('many_classes', {'classes': 2**31 - 1}, 'classes=2147483647'),
      ('half_a_class', {'classes': 4.5}, 'classes=4.5'),
      ('no_class', {'classes': 0}, 'classes=0'),
      ('names', {'names': (*'ab',)}, '2 names'),
      ('equal_names', {'names': (*'aab',)}, '2 names'),
      ('float_owners', {'client': Y + 0.5}, 'client is float64'),
      ('owners_of_some', {'domain': Y[1:]}, 'domain is int32'),
      ('float_relabeled', {'relabeled': np.float32(Y)}, 'relabeled is float32'),
      ('relabeled', {'relabeled': Y + 1}, 'labels from 1 to 3'))
  def test_refuses(self, fields, said):
    with self.assertRaisesRegex(InputError, f'^got .*{said}'):
      values.check(dataset(**fields))


class ChannelsTest(parameterized.TestCase):

  @parameterized.parameters(
      (3, 32, 32), (1, 28, 28), (4, 20, 30), (3, 240, 426), (3, 8, 8), (1, 16, 64))
  def test_first(self, *shape):
    self.assertTrue(values.channels_first((7, *shape)))
    x = np.zeros((10, *shape), np.uint8)
    with self.assertRaisesRegex(InputError, r'transpose\(0, 2, 3, 1\)'):
      values.check(dataset(x_train=x, x_test=x[:4]))

  @parameterized.parameters(
      (32, 32, 3), (3, 3, 3), (3, 224, 4), (1, 28, 1), (3, 3, 64), (4, 4, 512), (1, 1, 2048),
      (1, 128, 9), (1, 1000, 22), (2, 32, 32), (32, 32, 12), (7, 7, 512), (3, 32), (32, 32),
      (3, 8, 8, 8))
  def test_last(self, *shape):
    self.assertFalse(values.channels_first((7, *shape)))


if __name__ == '__main__':
  absltest.main()
