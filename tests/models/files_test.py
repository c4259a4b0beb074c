"""Files of tensors: what is read back, and what is refused."""

import collections
import errno
import os
import pickle
import stat
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
import pytest
from reference import full_disk

from hmm_jax.data import members
from hmm_jax.data.files import Limit
from hmm_jax.models import files
from hmm_jax.types import InputError, SaveError


def mutated(content, rng):
  """Returns bytes with some of them flipped, overwritten, cut off, left out or doubled."""
  content, kind = bytearray(content), rng.integers(6)
  start = int(rng.integers(len(content)))
  stop = start + int(rng.integers(1, 9))
  if kind == 0:
    content[start] ^= 1 << int(rng.integers(8))
  elif kind == 1:
    content[start:stop] = rng.bytes(stop - start)
  elif kind == 2:
    del content[start:]
  elif kind == 3:
    del content[start:stop]
  elif kind == 4:
    content[start:start] = content[start:stop]
  else:
    content[start:stop] = rng.choice([b'\xff', b'\0', b'9']) * (stop - start)
  return bytes(content)


TENSORS = {'a/kernel': np.arange(6, dtype=np.float32).reshape(2, 3), 'count': np.array(2**40)}


class TensorsTest(parameterized.TestCase):

  def path(self, name):
    return os.path.join(self.enter_context(tempfile.TemporaryDirectory()), name)

  @parameterized.parameters('x.safetensors', 'x.npz')
  def test_reads_what_it_wrote(self, name):
    path = os.path.join(self.path('new'), name)
    files.save(path, TENSORS)
    self.assertEqual(os.listdir(os.path.dirname(path)), [name])
    with files.opened(path) as file:
      self.assertEqual(file.shapes, {'a/kernel': (2, 3), 'count': ()})
      for key, wanted in TENSORS.items():
        np.testing.assert_array_equal(file.read(key), wanted)

  @parameterized.product(
      name=('x.safetensors', 'x.npz'),
      view=(np.transpose, np.asfortranarray, lambda x: x[:, ::2], lambda x: x[::-1],
            lambda x: np.broadcast_to(x[:1], x.shape), lambda x: x.astype('>f4'),
            lambda x: x[:0], lambda x: x[1, 1]))
  def test_any_layout_is_written_by_its_values(self, name, view):
    path, x = self.path(name), view(np.arange(12, dtype=np.float32).reshape(3, 4))
    files.save(path, {'x': x})
    with files.opened(path) as file:
      self.assertEqual((file.shapes['x'], file.read('x').dtype), (x.shape, np.float32))
      np.testing.assert_array_equal(file.read('x'), x)

  @parameterized.parameters(
      ('x.npz', jnp.bfloat16), ('x.npz', jnp.int4), ('x.npz', np.complex64), ('x.npz', object),
      ('x.safetensors', jnp.float8_e4m3fn), ('x.safetensors', jnp.int4), ('x.safetensors', str),
      ('x.safetensors', np.complex64), ('x.safetensors', np.longdouble))
  def test_a_type_that_is_not_read_back_is_not_written(self, name, dtype):
    path = self.path(name)
    with self.assertRaisesRegex(InputError, f'got odd in .* for {path}; expected integers, or'):
      files.save(path, {'fine': np.ones(2), 'odd': np.ones(2).astype(dtype)})
    self.assertEqual(os.listdir(os.path.dirname(path)), [])

  def test_bfloat16(self):
    path = self.path('x.safetensors')
    files.save(path, {'x': jnp.ones(3, jnp.bfloat16)})
    with files.opened(path) as file:
      self.assertEqual(file.read('x').dtype, jnp.bfloat16)

  def test_a_safetensors_file_may_begin_like_a_pickle(self):
    path = self.path('x.safetensors')
    begins = set()
    for length in range(60, 80):
      files.save(path, {'x' * length: np.ones((2, 2), np.float32)})
      with open(path, 'rb') as file:
        begins.add(file.read(1))
      with files.opened(path) as file:
        self.assertEqual(file.shapes, {'x' * length: (2, 2)})
    self.assertIn(b'\x80', begins)

  @parameterized.product(name=('x.safetensors', 'x.npz'), old=(None, 0o640, 0o444))
  def test_the_mode_is_that_of_the_old_file_or_of_any_new_one(self, name, old):
    path, other = self.path(name), self.path('other')
    with open(other, 'w'):
      mode = os.stat(other).st_mode
    if old is not None:
      files.save(path, TENSORS)
      os.chmod(path, old)
      mode = stat.S_IFREG | old
    files.save(path, TENSORS)
    self.assertEqual(os.stat(path).st_mode, mode)

  @parameterized.product(name=('x.safetensors', 'x.npz'), link=('', '.part', '.new', '.tmp'))
  def test_follows_no_link(self, name, link):
    path, precious = self.path(name), self.path('precious')
    with open(precious, 'w') as file:
      file.write('precious')
    os.symlink(precious, path + link)
    files.save(path, TENSORS)
    with open(precious) as file:
      self.assertEqual(file.read(), 'precious')
    self.assertFalse(os.path.islink(path))
    self.assertCountEqual(os.listdir(os.path.dirname(path)), {name, name + link})
    with files.opened(path) as file:
      np.testing.assert_array_equal(file.read('count'), TENSORS['count'])

  @parameterized.product(
      name=('x.safetensors', 'x.npz'),
      fails=(0, 10, 1000, 4000, 'fsync', 'replace', 'chmod', 'makedirs'), old=(False, True))
  def test_where_the_disk_is_full_the_old_file_stays(self, name, fails, old):
    path = self.path(name)
    if old:
      files.save(path, TENSORS)
    full = mock.patch.object(os, fails, side_effect=OSError(errno.ENOSPC, 'full')) if isinstance(
        fails, str) else full_disk.largest_file(fails)
    with full, self.assertRaises(SaveError) as caught:
      files.save(path, {'new': np.ones(1000, np.float32)})
    self.assertIn(caught.exception.__cause__.errno, (errno.ENOSPC, errno.EFBIG))
    self.assertEqual(os.listdir(os.path.dirname(path)), [name] if old else [])
    if old:
      with files.opened(path) as file:
        np.testing.assert_array_equal(file.read('count'), TENSORS['count'])

  @parameterized.parameters('file', 'self', 'a/b', 'x.npy')
  def test_names_of_tensors_in_an_npz_file(self, name):
    files.save(path := self.path('x.npz'), {name: np.ones(3)})
    with files.opened(path) as file:
      np.testing.assert_array_equal(file.read(name), np.ones(3))

  @parameterized.parameters(
      (np.ones(3, np.complex64), 'complex64'), (np.ones(3, np.longdouble), 'float128'),
      (np.array(['a']), '<U1'), (np.ones(3, 'V2'), r'\|V2'))
  def test_reads_numbers_only(self, x, kind):
    np.savez(path := self.path('x.npz'), x=x)
    with files.opened(path) as file, self.assertRaisesRegex(
        InputError, f'^got {path} with x in {kind}; expected integers, or floats of at most 64 '):
      file.read('x')

  def test_refuses_what_numpy_cannot_hold(self):
    path = self.path('x.safetensors')
    header = b'{"x":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    with open(path, 'wb') as file:
      file.write(len(header).to_bytes(8, 'little') + header + bytes(2))
    with files.opened(path) as file, self.assertRaisesRegex(
        InputError, f'^got {path} with x '):
      file.read('x')

  def test_refuses_members_of_an_npz_file_that_are_no_arrays(self):
    path = self.path('x.npz')
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('note.txt', 'hello')
    with self.assertRaisesRegex(InputError, f'^got a damaged {path} with note.txt; '):
      files.opened(path).__enter__()

  @parameterized.parameters('x.pt', 'x.safetensors', 'x.npz')
  def test_refuses_a_pickle_by_any_name(self, name):
    path = self.path(name)
    with open(path, 'wb') as file:
      pickle.dump(TENSORS, file)
    with self.assertRaisesRegex(InputError, f'^got {path}, a pickle, .*; expected safetensors or '):
      files.opened(path).__enter__()

  def test_refuses_the_zip_files_of_pytorch(self):
    path = self.path('x.npz')
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('model/data.pkl', pickle.dumps(3))
    with self.assertRaisesRegex(InputError, f'^got {path}, a pickle'):
      files.opened(path).__enter__()

  def test_refuses_objects_in_an_npz_file(self):
    path = self.path('x.npz')
    np.savez(path, x=np.array([{}], object))
    with self.assertRaisesRegex(InputError, f'^got a damaged {path}'):
      files.opened(path).__enter__()

  @parameterized.parameters('x.safetensors', 'x.npz')
  def test_refuses_half_a_file(self, name):
    path = self.path(name)
    files.save(path, {'x': np.ones(1000, np.float32)})
    os.truncate(path, 700)
    with self.assertRaisesRegex(InputError, f'^got a damaged {path}'):
      files.opened(path).__enter__()

  def test_refuses_what_is_absent_or_of_another_kind(self):
    path = self.path('x.csv')
    with self.assertRaisesRegex(InputError, r'x.csv; expected a file .safetensors or .npz, .*: No'):
      files.opened(path).__enter__()
    with open(path, 'w') as file:
      file.write('a,b')
    with self.assertRaisesRegex(InputError, r'x.csv; expected a file .safetensors or .npz, .*run$'):
      files.opened(path).__enter__()

  @parameterized.parameters('a\0.npz', 'a\0', '\0.safetensors')
  def test_refuses_what_is_no_path(self, name):
    with self.assertRaisesRegex(InputError, '^got .*null'):
      files.opened(self.path(name)).__enter__()

  @parameterized.parameters('x.npz', 'x.safetensors', 'x', 'x.pt')
  def test_a_pipe_or_a_device_is_refused_at_once(self, name):
    path = self.path(name)
    os.mkfifo(path)
    os.symlink('/dev/zero', zero := self.path(name))
    for odd in path, zero:
      with self.assertRaisesRegex(InputError, f'^got {odd}; expected a file .safetensors or .npz'):
        files.opened(odd).__enter__()

  @parameterized.parameters('>f4', '>f8', '>i8', '>u2', '<f2')
  def test_any_order_of_bytes_is_read_by_its_values(self, dtype):
    np.savez(path := self.path('x.npz'), x=np.arange(5).astype(dtype))
    with files.opened(path) as file:
      self.assertTrue(file.read('x').dtype.isnative)
      np.testing.assert_array_equal(file.read('x'), np.arange(5))

  def test_only_headers_are_read_to_know_shapes(self):
    zeros = np.zeros(10**6, np.float32)
    np.savez_compressed(path := self.path('x.npz'), x=zeros, y=zeros)
    read = []
    seen = lambda self, n=-1, own=zipfile.ZipExtFile.read: read.append(own(self, n)) or read[-1]
    with mock.patch.object(zipfile.ZipExtFile, 'read', seen), files.opened(path) as file:
      self.assertEqual(file.shapes, {'x': (10**6,), 'y': (10**6,)})
      self.assertLess(sum(map(len, read)), 1000)
      np.testing.assert_array_equal(file.read('x'), zeros)

  @parameterized.parameters(
      b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
      b"{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }",
      b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }",
      b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
      b"{'descr': '<f4', 'fortran_order': False, 'shape': ({[]: 1},), }", b'(' * 9000, b'', b'3')
  def test_refuses_a_header_that_its_member_does_not_have(self, header):
    path = self.path('x.npz')
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('x.npy', b'\x93NUMPY\1\0' + len(header).to_bytes(2, 'little') + header
                       + bytes(12))
    with self.assertRaisesRegex(InputError, f'^got a damaged {path} with x; '):
      files.opened(path).__enter__()

  def test_refuses_a_size_that_nothing_unpacks_to(self):
    with mock.patch.object(members, '_MOST_DEFLATED', 10):
      np.savez_compressed(path := self.path('x.npz'), x=np.zeros(10**5))
      with self.assertRaisesRegex(InputError, f'^got a damaged {path} with x; .* 800,000 bytes'):
        files.opened(path).__enter__()

  def test_refuses_what_unpacks_to_more_than_the_limit(self):
    path, tensors = self.path('x.npz'), {name: np.zeros(10**4) for name in 'xy'}
    limit = Limit(10**5 / 2**30, 'limit')
    np.savez_compressed(path, **tensors)
    with self.assertRaisesRegex(InputError, f'^got {path}; expected a file that unpacks to at most '
                                '.* it has .*; limit can be larger'):
      files.opened(path, limit).__enter__()
    files.opened(path, Limit(2 * 10**5 / 2**30)).__enter__()
    np.savez(path, **tensors)  # It is as large as it looks.
    files.opened(path, limit).__enter__()

  def test_refuses_two_members_of_one_name(self):
    with zipfile.ZipFile(path := self.path('x.npz'), 'w') as archive:
      archive.writestr('x.npy', b'')
      archive.writestr('x', b'')
    with self.assertRaisesRegex(InputError, f'^got a damaged {path}; '):
      files.opened(path).__enter__()

  @parameterized.parameters(
      ('{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 4),
      ('{"x":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', 8),
      ('{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
       '"y":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}', 8),
      ('{"x":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}', 8),
      ('{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}', 8),
      ('{"x":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', 8), ('[' * 10000, 8), ('', 0))
  def test_refuses_damaged_safetensors(self, header, size):
    with open(path := self.path('x.safetensors'), 'wb') as file:
      file.write(len(header).to_bytes(8, 'little') + header.encode() + bytes(size))
    with self.assertRaisesRegex(InputError, f'^got a damaged {path}'):
      files.opened(path).__enter__()

  def test_refuses_a_header_longer_than_the_file(self):
    with open(path := self.path('x.safetensors'), 'wb') as file:
      file.write((10**12).to_bytes(8, 'little') + b'{}')
    with self.assertRaisesRegex(InputError, f'^got a damaged {path}'):
      files.opened(path).__enter__()

  @parameterized.parameters(
      ('params/head', 'params/head/bias'), ('a', 'a/b/c'), ('a/b/c', 'a/b'), ('', '/x'))
  def test_refuses_a_tensor_in_the_place_of_a_folder(self, *names):
    with self.assertRaisesRegex(InputError, f'^got a tensor ({"|".join(names)}) in the place of '):
      files.unflatten({name: np.ones(1) for name in names})

  @parameterized.product(
      name=('x.safetensors', 'x.npz'), packed=(False, True))
  @pytest.mark.slow
  def test_whatever_is_damaged_is_refused_or_read(self, name, packed):
    path, rng = self.path(name), np.random.default_rng(0)
    whole = {'a/kernel': np.arange(6, dtype=np.float32).reshape(2, 3), 'count': np.array(7)}
    files.save(path, whole)
    if packed and name.endswith('npz'):
      np.savez_compressed(path, **whole)
    with open(path, 'rb') as file:
      content = file.read()
    outcomes = collections.Counter()
    for _ in range(400):
      with open(path, 'wb') as file:
        file.write(mutated(content, rng))
      try:
        with files.opened(path) as file:
          got = {key: file.read(key) for key in file.shapes}
      except InputError:
        outcomes['refused'] += 1
        continue
      outcomes['read'] += 1
      if name.endswith('npz') and got.keys() == whole.keys():  # It has check sums.
        for key, x in whole.items():
          np.testing.assert_array_equal(got[key], x)
    self.assertGreater(outcomes['refused'], 100)
    self.assertGreater(outcomes['read'], 10)

  def test_names_the_leaves_of_a_tree(self):
    tree = {'params': {'head': {'bias': 1, 'kernel': 2}}, 'batch_stats': {'mean': 3}}
    named = files.flatten(tree)
    self.assertEqual(named, {'params/head/bias': 1, 'params/head/kernel': 2, 'batch_stats/mean': 3})
    self.assertEqual(files.unflatten(named), tree)


if __name__ == '__main__':
  absltest.main()
