"""What a run has saved is proven whole, or refused; a previous point can be taken instead."""

import os
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np

from hmm_jax.experiment.archive import Archive
from hmm_jax.experiment.checkpoint import Checkpoints
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.types import InputError, SaveError

SEEDS = 3, 4


def states(number):
  return {'w': np.random.default_rng(number).random(50, np.float32), 'round': np.int32(number)}


class ArchiveTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = Workdir(self.enterContext(tempfile.TemporaryDirectory()))
    self.rows = []

  def archive(self, **options):
    return Archive(Workdir(self.workdir.path), **options)

  def leave(self, *rounds, data=None):
    """Leaves what a run of two clients saves at some rounds."""
    archive = Archive(self.workdir, data=data)
    archive.begin(after=self.rows[-1]['round'] if self.rows else 0)
    for number in rounds:
      self.rows += [{'round': number, 'seed': seed, 'seconds': 0.5 * number, 'loss': 1 / number}
                    for seed in SEEDS]
      self.workdir.table('metrics').write(self.rows)
      self.workdir.table('clients').append([
          {'round': number, 'seed': seed, 'client': k, 'accuracy': k / number}
          for seed in SEEDS for k in range(2)])
      archive.save(number, states(number), primary=True)

  def path(self, name):
    return pathlib.Path(self.workdir.path, name)

  def edit(self, name, old, new):
    content = self.path(name).read_bytes()
    self.assertIn(old, content)
    self.path(name).write_bytes(content.replace(old, new, 1))

  def test_nothing_saved_is_none(self):
    self.assertIsNone(self.archive().newest())

  def test_the_newest_comes_back(self):
    self.leave(2, 4, 6)
    newest = self.archive().newest()
    self.assertEqual((newest.round, newest.rows, newest.unfinished), (6, self.rows, {}))
    restored = self.archive().restore(6, jax.eval_shape(lambda: states(6)))
    jax.tree.map(np.testing.assert_array_equal, restored, states(6))
    self.assertCountEqual(os.listdir(self.path('checkpoints')), ['4', '6'])
    self.assertCountEqual(os.listdir(self.path('manifests')), ['4.json', '6.json'])

  def test_a_run_that_saves_while_it_is_listed_has_its_newest_point(self):
    self.leave(2, 4)
    listed, later = Checkpoints.rounds, iter([(6, 8)])

    def rounds(checkpoints):
      self.leave(*next(later, ()))  # All that had manifests when the reader looked is removed.
      return listed(checkpoints)

    with mock.patch.object(Checkpoints, 'rounds', rounds):
      self.assertEqual(self.archive().newest().round, 8)

  def test_what_was_unfinished_comes_back(self):
    self.leave(2)
    Archive(self.workdir).save(3, states(3), True, {'0': np.arange(3.), 'seconds': np.float64(1)})
    newest = self.archive().newest()
    self.assertEqual((newest.round, newest.rows), (3, self.rows))
    np.testing.assert_equal(newest.unfinished, {'0': np.arange(3.), 'seconds': np.float64(1)})
    self.leave(4, 6)
    self.assertCountEqual(os.listdir(self.path('manifests')), ['4.json', '6.json'])

  def test_one_that_a_kill_cut_short_is_passed_over(self):
    self.leave(2, 4, 6)
    os.remove(self.path('manifests/6.json'))
    archive = self.archive()
    newest = archive.newest()
    self.assertEqual((newest.round, newest.rows[-1]['round']), (4, 4))
    archive.begin(after=4)
    self.assertEqual(os.listdir(self.path('checkpoints')), ['4'])
    self.assertEqual(self.workdir.read_table('clients')[-1]['round'], 4)

  def damage(self, how):
    """Damages what was saved in round 6; names the file."""
    if how == 'flipped bit':
      path = next(self.path('checkpoints/6').rglob('d/*'))
      content = bytearray(path.read_bytes())
      content[len(content) // 2] ^= 1
      path.write_bytes(content)
      return 'checkpoints/6'
    if how == 'file of a checkpoint gone':
      next(self.path('checkpoints/6').rglob('d/*')).unlink()
      return 'checkpoints/6'
    if how == 'older checkpoint':
      shutil.rmtree(self.path('checkpoints/6'))
      shutil.copytree(self.path('checkpoints/4'), self.path('checkpoints/6'))
      return 'checkpoints/6'
    if how == 'older manifest':
      shutil.copy(self.path('manifests/4.json'), self.path('manifests/6.json'))
      return 'manifests/6.json'
    if how == 'manifest':
      self.edit('manifests/6.json', b'"round": 6', b'"round": 7')
      return 'manifests/6.json'
    name, old, new = {
        'value': ('clients.csv', b'6,3,1,0.16', b'6,3,1,0.26'),
        'cut short': ('clients.csv', b'6,4,0,0.0\r\n6,4,1,', b''),
        'doubled row': ('clients.csv', b'6,3,0,0.0\r\n', b'6,3,0,0.0\r\n' * 2),
        'metrics': ('metrics.csv', b'6,3,3.0', b'6,3,3.5'),
        'no number': ('metrics.csv', b'6,3,3.0', b'6,3,?'),
        'other seed': ('metrics.csv', b'6,3,3.0', b'6,2,3.0')}[how]
    self.edit(name, old, new)
    return name

  DAMAGE = ('flipped bit', 'file of a checkpoint gone', 'older checkpoint', 'older manifest',
            'manifest', 'value', 'cut short', 'doubled row', 'metrics', 'no number', 'other seed')

  @parameterized.parameters(*DAMAGE)
  def test_damage_is_named_and_a_previous_point_taken_on_request(self, how):
    self.leave(2, 4, 6)
    name = self.damage(how)
    with self.assertRaisesRegex(InputError, f'got .*{self.workdir.path}/{name}'):
      self.archive().newest()
    archive = self.archive()
    self.assertEqual(archive.newest(previous=True).round, 4)
    archive.begin(after=4)
    self.assertEqual(self.archive().newest().round, 4)

  def test_the_newest_is_taken_where_it_is_whole(self):
    self.leave(2, 4, 6)
    self.assertEqual(self.archive().newest(previous=True).round, 6)

  @parameterized.parameters(b'round,seed', b'2,3,0,')
  def test_without_any_whole_point_the_first_damage_is_named(self, old):
    self.leave(2, 4)
    self.edit('clients.csv', old, old.replace(b'3', b'9').replace(b'seed', b'need'))
    for previous in (False, True):
      with self.assertRaisesRegex(InputError, 'clients.csv'):
        self.archive().newest(previous=previous)

  @parameterized.parameters('inputs', 'graph')
  def test_other_data_are_refused(self, what):
    data = {'inputs': 'a', 'graph': 'b'}
    self.leave(2, data=data)
    self.assertEqual(self.archive(data=data).newest().round, 2)
    with self.assertRaisesRegex(InputError, f'got other {what} than'):
      self.archive(data=data | {what: 'c'}).newest()

  @parameterized.parameters(
      (b'4,4,1,', b'2,4,1,'), (b'4,3,0,0.0\r\n', b''), (b'4,3,1,', b'4,9,1,'))
  def test_rows_of_a_run_from_before_manifests_are_counted(self, old, new):
    self.leave(2, 4)
    shutil.rmtree(self.path('manifests'))
    self.assertEqual(self.archive().newest(seeds=SEEDS, clients=2).round, 4)
    self.edit('clients.csv', old, new)
    with self.assertRaisesRegex(InputError, 'got a damaged .*clients.csv, with rows'):
      self.archive().newest(seeds=SEEDS, clients=2)

  @parameterized.parameters('metrics', 'clients')
  def test_a_folder_that_vanishes_is_not_made_anew(self, table):
    self.leave(2)
    shutil.rmtree(self.workdir.path)
    with self.assertRaisesRegex(SaveError, f'{table}.csv'):
      if table == 'metrics':
        self.workdir.table('metrics').write(self.rows)
      else:
        self.workdir.table('clients').append([{'round': 4, 'seed': 3, 'client': 0}])
    self.assertFalse(os.path.exists(self.workdir.path))
    os.mkdir(self.workdir.path)

  def test_a_reader_changes_nothing(self):
    self.leave(2, 4)
    before = {path: path.stat().st_mtime_ns for path in self.path('.').rglob('*')}
    self.archive().newest()
    self.archive().restore(4, jax.eval_shape(lambda: states(4)))
    self.assertEqual({path: path.stat().st_mtime_ns for path in self.path('.').rglob('*')}, before)


if __name__ == '__main__':
  absltest.main()
