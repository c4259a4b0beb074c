"""Checkpoints come back exactly, or are refused in one line."""

import os
import pathlib
import tempfile

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmm_jax.experiment.checkpoint import Checkpoints
from hmm_jax.types import InputError


def tree(seed=0):
  return {'params': {'w': jax.random.normal(jax.random.key(seed), (3, 50))},
          'round': jnp.int32(seed)}

# Orbax closes its loop at the first failure, while other reads are under way.
LATE_READS = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


class CheckpointTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = folder.name

  def test_comes_back_exactly(self):
    Checkpoints(self.folder).save(5, tree(5))
    restored = Checkpoints(self.folder).restore(5, jax.eval_shape(tree))
    jax.tree.map(np.testing.assert_array_equal, restored, tree(5))

  def test_nothing_saved_is_no_round(self):
    self.assertEqual(Checkpoints(self.folder).rounds(), [])

  def test_those_after_a_round_are_removed(self):
    checkpoints = Checkpoints(self.folder)
    for number in (1, 2, 10):
      checkpoints.save(number, tree(number))
    os.mkdir(os.path.join(self.folder, '11.orbax-checkpoint-tmp'))
    checkpoints.remove(unless=lambda number: number <= 2)
    self.assertCountEqual(os.listdir(self.folder), ['1', '2'])
    self.assertEqual(checkpoints.rounds(), [1, 2])
    again = Checkpoints(self.folder)
    again.save(10, tree(10))
    self.assertEqual(again.rounds(), [1, 2, 10])

  def test_a_reader_changes_nothing(self):
    Checkpoints(self.folder).save(1, tree(1))
    half = pathlib.Path(self.folder, '2.orbax-checkpoint-tmp')
    half.mkdir()
    (half / '_CHECKPOINT_METADATA').write_bytes(
        pathlib.Path(self.folder, '1', '_CHECKPOINT_METADATA').read_bytes())
    before = sorted(pathlib.Path(self.folder).rglob('*'))
    reader = Checkpoints(self.folder)
    self.assertEqual(reader.rounds(), [1])
    reader.restore(1, jax.eval_shape(tree))
    self.assertEqual(sorted(pathlib.Path(self.folder).rglob('*')), before)

  def test_a_file_in_their_place_is_refused(self):
    path = os.path.join(self.folder, 'checkpoints')
    pathlib.Path(path).touch()
    with self.assertRaisesRegex(InputError, f'got {path}, which is a file'):
      Checkpoints(path).rounds()

  @parameterized.parameters('truncated', 'garbage', 'missing')
  @LATE_READS
  def test_a_damaged_one_is_refused(self, damage):
    Checkpoints(self.folder).save(1, tree(1))
    for path in pathlib.Path(self.folder, '1').rglob('d/*'):
      content = path.read_bytes()
      if damage == 'missing':
        path.unlink()
      else:
        path.write_bytes(content[:len(content) // 2] if damage == 'truncated' else
                         b'x' * len(content))
    with self.assertRaisesRegex(InputError, 'got a damaged or foreign checkpoint'):
      Checkpoints(self.folder).restore(1, jax.eval_shape(tree))

  @parameterized.parameters(
      ({'params': {'w': (3, 51)}, 'round': ()},),
      ({'params': {'v': (3, 50)}, 'round': ()},),
      ({'params': {'w': (3, 50)}},),
  )
  @LATE_READS
  def test_one_of_another_model_is_refused(self, shapes):
    Checkpoints(self.folder).save(1, tree(1))
    like = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes,
                        is_leaf=lambda x: isinstance(x, tuple))
    with self.assertRaisesRegex(InputError, 'got .*checkpoint'):
      Checkpoints(self.folder).restore(1, like)


if __name__ == '__main__':
  absltest.main()
