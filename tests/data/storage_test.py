"""Files are replaced whole or not at all, and digests tell one changed bit."""

import os
import pathlib
import stat
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.data import storage
from hmm_jax.types import SaveError


class ReplacingTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'a.txt'

  def write(self, text='new'):
    with storage.replacing(str(self.path)) as new:
      pathlib.Path(new).write_text(text)

  def test_the_file_is_new_and_nothing_else_is_left(self):
    for text in ('one', 'two'):
      self.write(text)
      self.assertEqual(self.path.read_text(), text)
      self.assertEqual(os.listdir(self.folder), ['a.txt'])

  @parameterized.parameters('mkdir', 'fsync', 'replace', 'chmod')
  def test_a_full_disk_leaves_the_old_file_and_nothing_else(self, call):
    self.write('old')
    with (mock.patch.object(os, call, side_effect=OSError(28, 'No space left on device')),
          self.assertRaisesRegex(SaveError, f'{self.path}: No space left')):
      self.write()
    self.assertEqual(self.path.read_text(), 'old')
    self.assertEqual(os.listdir(self.folder), ['a.txt'])

  @parameterized.parameters(ValueError, KeyboardInterrupt)
  def test_so_does_any_failure(self, error):
    self.write('old')
    with self.assertRaises(error), storage.replacing(str(self.path)) as new:
      pathlib.Path(new).write_text('half')
      raise error
    self.assertEqual(self.path.read_text(), 'old')
    self.assertEqual(os.listdir(self.folder), ['a.txt'])

  def test_a_link_is_replaced_and_not_followed(self):
    other = self.folder / 'other'
    other.write_text('mine')
    self.path.symlink_to(other)
    self.write()
    self.assertEqual((other.read_text(), self.path.read_text()), ('mine', 'new'))
    self.assertFalse(self.path.is_symlink())

  @parameterized.parameters(0o022, 0o077)
  def test_modes_are_those_of_the_umask_or_of_the_file_before(self, mask):
    before = os.umask(mask)
    self.addCleanup(os.umask, before)
    self.write()
    mode = lambda: stat.S_IMODE(self.path.stat().st_mode)
    self.assertEqual(mode(), 0o666 & ~mask)
    self.path.chmod(0o640)
    self.write()
    self.assertEqual(mode(), 0o640)

  def test_what_a_kill_left_is_removed(self):
    self.write('old')
    with storage.replacing(str(self.path)) as new:
      left = os.path.join(os.path.dirname(new), 'half')
      pathlib.Path(left).touch()
      storage.remove_leftovers(str(self.folder))
      self.assertEqual(os.listdir(self.folder), ['a.txt'])
      os.mkdir(os.path.dirname(new))
      pathlib.Path(new).touch()


class DigestTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'a': np.arange(6.)},), ({'b': np.arange(6)},), ({'a': np.arange(6).reshape(2, 3)},),
      ({'a': np.arange(6, dtype=np.int16)},), ({'a': np.array([0, 1, 2, 3, 4, 6])},), (None,))
  def test_arrays_differ_in_values_shapes_types_and_names(self, other):
    digest = storage.digest_of_arrays({'a': np.arange(6)})
    self.assertNotEqual(storage.digest_of_arrays(other), digest)
    self.assertEqual(storage.digest_of_arrays({'a': np.arange(12)[::2] // 2}), digest)

  def test_of_no_element_and_of_none(self):
    self.assertNotEqual(storage.digest_of_arrays(np.zeros(())),
                        storage.digest_of_arrays(np.zeros(0)))

  def test_json_is_the_same_in_any_order(self):
    self.assertEqual(storage.digest_of_json({'a': 1, 'b': (2,)}),
                     storage.digest_of_json({'b': [2], 'a': 1}))
    self.assertNotEqual(storage.digest_of_json({'a': 1}), storage.digest_of_json({'a': 1.5}))


if __name__ == '__main__':
  absltest.main()
