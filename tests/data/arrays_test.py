"""Labels and vectors of .npz files, by example and by id."""

import os
import re
import tempfile

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.data import arrays
from hmm_jax.data.files import Limit
from hmm_jax.types import InputError

X = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
Y = np.array([0, 1, 2, 0, 1])


class LabelsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'labels.npz')

  @parameterized.parameters(np.uint8, np.int64)
  def test_labels_of_every_row(self, dtype):
    np.savez(self.path, y=np.arange(5, dtype=dtype), x=np.array([None]))  # x is left unread.
    labels = arrays.labels(self.path, 5, '01234')
    self.assertEqual((labels.dtype, labels.tolist()), (np.int32, [0, 1, 2, 3, 4]))

  @parameterized.parameters('int16', '>i8', 'uint64', str)
  def test_labels_are_those_of_the_data_set(self, dtype):
    np.savez(self.path, y=np.array([40, 10, 7, 10]).astype(dtype))
    self.assertEqual(arrays.labels(self.path, 4, ('7', '10', '40')).tolist(), [2, 1, 0, 1])

  @parameterized.parameters(
      ({'x': Y}, 'expected an array y, it has none'),
      ({'y': Y[:4]}, 'y is int64 (4,), expected integers (5,)'),
      ({'y': Y[:, None]}, 'y is int64 (5, 1), expected integers (5,)'),
      ({'y': Y.astype(float)}, 'y is float64 (5,), expected integers (5,)'),
      ({'y': Y > 0}, 'y is bool (5,), expected integers (5,)'),
      ({'y': Y - 1}, 'y goes from -1 to 1, expected labels from 0'),
      ({'y': Y + 1}, "y has the label '3', expected those of the data set, 3: '0', '1', '2'"),
      ({'y': Y + 2**40}, "y has the label '1099511627776', expected"),
      ({'y': np.array(list('01201')) + 'x'}, "y has the label '0x', expected"))
  def test_labels_that_do_not_fit(self, stored, text):
    np.savez(self.path, **stored)
    said = f'got corrupt.kind=labels:{self.path}; {text}'
    with self.assertRaisesRegex(InputError, re.escape(said)):
      arrays.labels(self.path, 5, '012')

  def test_no_such_file(self):
    with self.assertRaisesRegex(InputError, 'got corrupt.kind=labels:/nowhere.npz; expected a '
                                'readable .npz file .*No such file'):
      arrays.labels('/nowhere.npz', 5, '012')


class VectorsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'vectors.npz')

  @parameterized.product(
      names=([917791044158185473, 7, 12], ['917791044158185473', '7', '12']),
      dtype=('float64', 'float16', 'int8'))
  def test_vectors_of_names(self, names, dtype):
    x = np.arange(6).reshape(3, 2).astype(dtype)
    np.savez(self.path, id=np.array(names), x=x, more=np.array([None]))
    got = arrays.vectors(self.path, ['12', '917791044158185473', '12'])
    self.assertEqual((got.dtype, got.tolist()), (np.float32, [[4, 5], [0, 1], [4, 5]]))

  @parameterized.parameters(
      ({'x': X}, 'expected arrays id and x, it has x'),
      ({'y': X}, 'expected arrays id and x, it has neither'),
      ({'id': Y, 'x': np.zeros(5)}, 'id is int64 (5,) and x float64 (5,)'),
      ({'id': Y[:4], 'x': np.zeros((5, 2))}, 'id is int64 (4,) and x float64 (5, 2)'),
      ({'id': Y * 0.5, 'x': np.zeros((5, 2))}, 'id is float64 (5,) and x float64 (5, 2)'),
      ({'id': Y, 'x': np.full((5, 2), 'a')}, 'id is int64 (5,) and x <U1 (5, 2)'),
      ({'id': Y, 'x': np.full((5, 2), 1e300)}, 'x holds values that are not finite in float32'),
      ({'id': Y[:2], 'x': np.zeros((2, 2))}, '1 have none, the first is 2'),
      ({'id': Y + 1, 'x': np.zeros((5, 2))}, '1 have none, the first is 0'))
  def test_vectors_that_do_not_fit(self, stored, text):
    np.savez(self.path, **stored)
    with self.assertRaisesRegex(InputError, f'got crisismmd.vectors=.*{re.escape(text)}'):
      arrays.vectors(self.path, ['0', '2', '2', '0'])

  def test_vectors_that_unpack_to_more_than_the_limit(self):
    np.savez_compressed(self.path, id=np.arange(9), x=np.zeros((9, 500)))
    arrays.vectors(self.path, ['0'], Limit(40_000 / 2**30))
    with self.assertRaisesRegex(InputError, 'got crisismmd.vectors=.* unpacks to at most .*; a.b '):
      arrays.vectors(self.path, ['0'], Limit(30_000 / 2**30, 'a.b'))

  def test_no_such_file(self):
    with self.assertRaisesRegex(InputError, 'got crisismmd.vectors=/nowhere.npz; expected a '
                                'readable .npz file .*No such file'):
      arrays.vectors('/nowhere.npz', ['0'])


if __name__ == '__main__':
  absltest.main()
