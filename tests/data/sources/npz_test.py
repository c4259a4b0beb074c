"""Sets in .npz files: what is loaded, and files that do not fit."""

import gc
import io
import os
import struct
import tempfile
import warnings
import zipfile

from absl.testing import absltest, parameterized
import numpy as np
import pytest
from reference import damage

from hmm_jax.data.sources import npz
from hmm_jax.tasks import classification
from hmm_jax.types import InputError

X = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
Y = np.array([0, 1, 2, 0, 1])


def header(text, size=0, version=1):
  """Returns a .npy file with a header, and so many bytes of data."""
  padded = text.encode().ljust(117) + b'\n'
  return b'\x93NUMPY' + bytes([version, 0]) + struct.pack('<H', 118) + padded + b'1' * size


def member(test, content, name='x.npy'):
  """Writes a file with labels and one more member; returns its path."""
  stream = io.BytesIO()
  np.save(stream, Y)
  with zipfile.ZipFile(test.path, 'w') as archive:
    archive.writestr('y.npy', stream.getvalue())
    archive.writestr(name, content)
  return test.path


def classes_of(path):
  """Loads a file as data of a classification."""
  return classification.prepare(npz.load(path))


def load_member(test, content):
  return npz.load(member(test, content))


class NpzTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.folder, 'set.npz')

  def save(self, **arrays):
    np.savez(self.path, **arrays)
    return self.path

  def write(self, content):
    with open(self.path, 'wb') as file:
      file.write(content)

  def read(self):
    with open(self.path, 'rb') as file:
      return file.read()

  def refuse(self, path, pattern):
    with self.assertRaisesRegex(InputError, pattern) as caught:
      npz.load(path)
    self.assertStartsWith(str(caught.exception), f'got dataset=npz:{path}; ')
    self.assertNotIn('\n', str(caught.exception))

  def test_both_splits(self):
    path = self.save(x_train=X, y_train=Y, x_test=X[:2], y_test=np.array([3, 0]))
    loaded = classes_of(path)
    np.testing.assert_array_equal(loaded.x_train, X[..., None])
    np.testing.assert_array_equal(loaded.y_train, Y)
    self.assertEqual((loaded.x_train.dtype, loaded.y_train.dtype), (np.uint8, np.int32))
    self.assertEqual(loaded.x_test.shape, (2, 4, 3, 1))
    self.assertEqual(loaded.classes, 4)  # label 3 is in the test split only
    self.assertEqual(loaded.name, f'npz:{path}')
    self.assertIsNone(loaded.client)
    self.assertIsNone(loaded.domain)

  def test_one_split_with_owners_and_domains(self):
    loaded = classes_of(self.save(x=X, y=Y, client=np.arange(5), domain=np.uint8([0, 0, 1, 1, 1])))
    self.assertEqual(loaded.x_test.shape, (0, 4, 3, 1))
    self.assertEqual(loaded.y_test.shape, (0,))
    np.testing.assert_array_equal(loaded.client, np.arange(5))
    np.testing.assert_array_equal(loaded.domain, [0, 0, 1, 1, 1])

  def test_owners_beside_a_named_training_split(self):
    loaded = classes_of(self.save(x_train=X, y_train=Y, x_test=X, y_test=Y, client=np.arange(5)))
    np.testing.assert_array_equal(loaded.client, np.arange(5))

  def test_x_and_y_may_come_with_a_test_split(self):
    loaded = classes_of(self.save(x=X, y=Y, x_test=X[:1], y_test=Y[:1]))
    self.assertLen(loaded.x_test, 1)

  def test_named_training_split_wins_over_x_and_y(self):
    loaded = classes_of(self.save(x=X[:2], y=Y[:2], x_train=X, y_train=Y, x_test=X, y_test=Y))
    self.assertLen(loaded.x_train, 5)

  @parameterized.parameters(
      (np.uint8, np.uint8), (np.float64, np.float32), (np.float16, np.float32),
      (np.int64, np.int32), (np.uint16, np.int32), (np.int32, np.int32))
  def test_dtypes(self, stored, loaded):
    x = X.reshape(5, 12).astype(stored)
    result = npz.load(self.save(x=x, y=Y)).x_train
    self.assertEqual(result.dtype, loaded)
    np.testing.assert_array_equal(result, x)

  @parameterized.parameters(
      ([1, 2, 3, 2, 1], (), [0, 1, 2, 1, 0], '123'),
      ([0, 9000, 0, 1000, 0], (), [0, 2, 0, 1, 0], ('0', '1000', '9000')),
      ([2**40, 5, 5, 5, 5], (), [1, 0, 0, 0, 0], ('5', str(2**40))),
      ([1, 1, 1, 2, 2], [5, 2], [0, 0, 0, 1, 1], '125'),
      ([7] * 5, (), [0] * 5, '7'),
      ([*'cabba'], (), [2, 0, 1, 1, 0], 'abc'),
      ([0, 2, 1, 1, 0], [3], [0, 2, 1, 1, 0], ''),
      ([*'02110'], (), [0, 2, 1, 1, 0], ''))
  def test_labels_are_numbered_and_keep_their_names(self, y, y_test, classes, names):
    test = {'x_test': X[:len(y_test)], 'y_test': np.array(y_test)} if y_test else {}
    loaded = classes_of(self.save(x=X, y=np.array(y), **test))
    self.assertEqual((loaded.y_train.dtype, loaded.y_train.tolist()), (np.int32, classes))
    self.assertEqual(loaded.names, tuple(names))
    self.assertEqual(loaded.classes, len(set(y) | set(y_test)))
    self.assertEqual(loaded.y_test.dtype, np.int32)
    known = loaded.names or tuple(map(str, range(loaded.classes)))
    self.assertEqual([known[c] for c in loaded.y_test], [*map(str, y_test)])

  def test_labels_of_both_splits_in_other_types(self):
    loaded = classes_of(self.save(x=X, y=np.int64(Y), x_test=X[:1], y_test=np.array([2**63 + 1])))
    self.assertEqual(loaded.names, ('0', '1', '2', str(2**63 + 1)))

  @parameterized.parameters((np.float32, False), (np.float16, False), (float, True), ('>f8', True))
  def test_says_where_inputs_are_rounded(self, dtype, said):
    loaded = classes_of(self.save(x=np.ones((5, 2), dtype), y=Y))
    self.assertEqual('rounded' in str(loaded.facts), said)

  def test_home_directory(self):
    self.save(x=X, y=Y)
    with absltest.mock.patch.dict(os.environ, HOME=self.folder):
      self.assertLen(npz.load('~/set.npz').x_train, 5)

  @parameterized.parameters(
      ({'x': X}, 'expected arrays x and y, it has x$'),
      ({'y': Y}, 'expected arrays x and y, it has y$'),
      ({'x_train': X, 'y': Y}, 'expected arrays x_train and y_train, it has x_train, y$'),
      ({'x_train': X, 'y_train': Y},
       'expected arrays x_test and y_test, it has x_train, y_train$'),
      ({'x': X, 'y': Y, 'y_test': Y}, 'expected arrays x_test and y_test, it has x, y, y_test'),
      ({'images': X}, 'expected arrays x and y, it has none of x_train, y_train'),
      ({'x': X, 'y': Y[:4]}, r'y is int64 \(4,\), expected numbers or strings \(5,\)'),
      ({'x': X, 'y': np.zeros((5, 2, 2))}, r'y is float64 \(5, 2, 2\), expected numbers or'),
      ({'x': X, 'y': np.zeros((5, 0))}, r'y is float64 \(5, 0\), expected numbers or'),
      ({'x': X, 'y': Y.astype(complex)}, 'y is complex128'),
      ({'x': X, 'y': Y, 'x_test': X, 'y_test': Y.astype(str)}, 'int64 in training and <U'),
      ({'x': X[:0], 'y': Y[:0]}, r'x is uint8 \(0, 4, 3\)'),
      ({'x': Y, 'y': Y}, r'x is int64 \(5,\)'),
      ({'x': X.astype(str), 'y': Y}, 'x is <U'),
      ({'x': X > 3, 'y': Y}, 'x is bool'),
      ({'x': X.astype(complex), 'y': Y}, 'x is complex128'),
      ({'x': np.full((5, 2), np.nan), 'y': Y}, 'x holds values that are not finite'),
      ({'x': np.full((5, 2), np.inf), 'y': Y}, 'x holds values that are not finite'),
      ({'x': np.full((5, 2), 1e300), 'y': Y}, 'x holds values that are not finite'),
      ({'x': np.full((5, 2), 2**40), 'y': Y}, 'x goes from 1099511627776 to .* expected int32'),
      ({'x': X, 'y': Y, 'x_test': X[:, :2], 'y_test': Y},
       r'test inputs are uint8 \(2, 3, 1\), expected uint8 \(4, 3, 1\)'),
      ({'x': X, 'y': Y, 'x_test': X.astype(float), 'y_test': Y}, 'test inputs are float32'),
      ({'x': X, 'y': Y, 'client': Y[:3]}, r'client is int64 \(3,\), expected integers \(5,\)'),
      ({'x': X, 'y': Y, 'domain': Y.astype(str)}, 'domain is <U'),
  )
  def test_arrays_that_do_not_fit(self, arrays, pattern):
    self.refuse(self.save(**arrays), pattern)

  def test_objects_are_never_unpickled(self):
    opened = []

    class Trap:
      def __reduce__(self):
        return opened.append, (1,)

    self.refuse(self.save(x=np.array([Trap()] * 5), y=Y), 'x.npy holds Python objects')
    self.assertEmpty(opened)

  def test_missing_file(self):
    self.refuse('/nowhere/set.npz', 'No such file')

  def test_folder(self):
    self.refuse(self.folder, 'Is a directory')

  def test_not_an_npz(self):
    self.write(b'x,y\n1,2\n')
    self.refuse(self.path, 'expected a readable .npz file')

  def test_bare_array(self):
    np.save(self.path + '.npy', X)
    self.refuse(self.path + '.npy', 'it is a bare .npy array')

  @parameterized.parameters(np.savez, np.savez_compressed)
  def test_damage_gives_one_line_or_sound_arrays(self, save):
    save(self.path, x=X, y=Y)
    refused = damage.refusals(self.path, damage.changed(self.read(), 200), npz.load)
    self.assertGreater(refused, 150)

  @parameterized.parameters(np.savez, np.savez_compressed)
  @pytest.mark.slow
  def test_mutations_give_one_line_or_sound_arrays(self, save):
    save(self.path, x=X, y=Y, client=Y)
    refused = damage.refusals(self.path, damage.mutated(self.read(), 1500), npz.load)
    self.assertGreater(refused, 1000)

  @pytest.mark.slow
  def test_mutated_headers_give_one_line_or_sound_arrays(self):
    stream = io.BytesIO()
    np.save(stream, X)

    def load(path):
      with open(path, 'rb') as file:
        load_member(self, file.read())

    refused = damage.refusals(os.path.join(self.folder, 'x.npy'),
                              damage.mutated(stream.getvalue()[:128], 1500), load)
    self.assertGreater(refused, 1000)

  @parameterized.named_parameters(
      ('text', b'no array'), ('empty', b''),
      ('cut', header("{'descr': '|u1', 'fortran_order': False, 'shape': (5, 4")),
      ('open_quote', header("{'descr': '|u1, 'fortran_order': False, 'shape': (5, 4)}'''")),
      ('odd_type', header("{'descr': ('|u1',), 'fortran_order': False, 'shape': (5, 4)}", 20)),
      ('negative', header("{'descr': '|u1', 'fortran_order': False, 'shape': (-5, -4)}", 20)),
      ('fewer', header("{'descr': '|u1', 'fortran_order': False, 'shape': (5, 4)}", 19)),
      ('more', header("{'descr': '|u1', 'fortran_order': False, 'shape': (5, 4)}", 21)),
      ('version', header("{'descr': '|u1', 'fortran_order': False, 'shape': (5, 4)}", 20, 3)))
  def test_members_that_are_no_arrays(self, content):
    with self.assertRaisesRegex(InputError, 'expected a readable .npz file'):
      load_member(self, content)

  def test_nothing_is_allocated_for_a_header_that_claims_too_much(self):
    for shape in ('(1000000000000, 6)', '(2000000000, 1)'):
      claim = header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}", 8)
      with absltest.mock.patch.object(np.lib.format, 'read_array') as read, (
          self.assertRaisesRegex(InputError, 'claims')):
        load_member(self, claim)
      read.assert_not_called()

  def test_what_unpacks_to_more_than_the_limit_is_not_unpacked(self):
    zeros, limit = np.zeros((5, 4, 100), np.uint8), 2000 / 2**30
    np.savez_compressed(self.path, x=zeros, y=Y, other=zeros)  # `other` is not read.
    npz.load(self.path, unpack_limit=2500 / 2**30)
    with (absltest.mock.patch.object(zipfile.ZipExtFile, 'read') as read,
          self.assertRaisesRegex(InputError, f'got dataset=npz:{self.path}; expected a file that '
                                 'unpacks to at most .* it has .*; npz.unpack_limit can be')):
      npz.load(self.path, unpack_limit=limit)
    read.assert_not_called()
    npz.load(self.save(x=zeros, y=Y), unpack_limit=limit)  # It is as large as it looks.

  def test_a_member_of_another_name(self):
    self.refuse(member(self, b'bytes', 'x'), 'it has y')

  def test_a_pipe_or_a_device(self):
    os.mkfifo(self.path)
    self.refuse(self.path, 'pipe or device')
    self.refuse('/dev/zero', 'pipe or device')

  def test_a_path_that_none_can_be(self):
    self.refuse('a\0b', 'null')

  def test_arrays_in_another_byte_order_and_layout(self):
    x = np.asfortranarray(np.arange(15.).reshape(5, 3)).astype('>f8')
    loaded = classes_of(self.save(x=x, y=(Y + 300).astype('>i2'), client=Y.astype('>u4')))
    np.testing.assert_array_equal(loaded.x_train, np.arange(15).reshape(5, 3))
    self.assertEqual(loaded.x_train.dtype, np.float32)
    self.assertEqual(loaded.names, ('300', '301', '302'))
    np.testing.assert_array_equal(loaded.client, Y)

  def test_bad_checksum(self):
    self.save(x=X, y=Y)
    content = self.read()
    at = content.index(X.tobytes())
    self.write(content[:at] + b'\xff' + content[at + 1:])
    self.refuse(self.path, 'Bad CRC-32')

  def test_a_damaged_file_is_closed(self):
    self.write(b'PK\x03\x04 cut short')
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      self.refuse(self.path, 'not a zip file')
      gc.collect()
    self.assertEmpty(caught)


if __name__ == '__main__':
  absltest.main()
