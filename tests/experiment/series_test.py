"""Runs of one command: checked before any trains, resumed, and compared at the end."""

import contextlib
import io
import os
import tempfile
from unittest import mock

from absl.testing import absltest
import pytest

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import grid, launch, series
from hmm_jax.experiment.trainer import Diverged, Trainer
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

TINY = {'dataset': 'synthetic', 'partition.kind': 'iid', 'mlp.hidden': (4,), 'seeds': 2,
        'mapper': 'map', 'rounds': 2, 'eval_every': 1, 'local.epochs': 1}


def points(changes=None, **texts):
  base = configs.configure(TINY | (changes or {}))
  return grid.points(base, {key.replace('__', '.'): text for key, text in texts.items()})


class SeriesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'grid')
    self.enterContext(mock.patch.object(launch, 'plots'))

  def train(self, made):
    with contextlib.redirect_stdout(io.StringIO()) as out:
      try:
        series.train_all(made, self.folder, Screen())
      finally:
        self.said = out.getvalue()
    return self.said

  def test_trains_what_is_missing_and_ends_with_one_table(self):
    self.train(points(local__lr='0.05,0.1'))
    self.assertCountEqual(os.listdir(self.folder), ['local.lr=0.05', 'local.lr=0.1', 'comparison'])
    with mock.patch.object(Trainer, 'compile', side_effect=AssertionError('trained again')):
      said = self.train(points(local__lr='0.05,0.1'))
    self.assertEqual(said.count('round 2, global/test/accuracy'), 2)
    *_, table = said.split('test accuracy of the global model\n')
    rows = [line.split('│')[1].strip() for line in table.splitlines() if line.startswith('│')]
    self.assertEqual(rows, ['local.lr=0.05', 'local.lr=0.1'])
    self.assertNotIn('training examples', said)
    self.assertEndsWith(said, f'figure and tables: {self.folder}/comparison\n')
    self.assertCountEqual(os.listdir(os.path.join(self.folder, 'comparison')),
                          ['table.csv', 'table.md', 'table.tex', 'curves.png', 'curves.pdf'])
    with (mock.patch.object(Trainer, 'compile', side_effect=AssertionError('trains')),
          self.assertRaisesRegex(AssertionError, 'trains')):
      self.train(points(local__lr='0.05,0.2'))

  @pytest.mark.slow
  def test_a_diverged_point_leaves_the_others_to_train(self):
    with self.assertRaisesRegex(Diverged, r'\Alocal.lr=1e\+30 diverged in round 1'):
      self.train(points(local__lr='1e30,0.1'))
    self.assertIn('local.lr=0.1: round 2', self.said)
    self.assertIn('│ local.lr=0.1 ', self.said)

  def test_a_point_that_is_impossible_is_named_before_anything_is_written(self):
    bad = [(points({'partition.test': 0.0}, algorithm='fedavg,fedmerge'),
            'fedmerge: got partition.test=0.0'),
           (points(rounds='2,0'), 'rounds=0: got rounds=0'),
           (points({'references': 'iid'}, rounds='2,1'), 'got references')]
    for made, expected in bad:
      with self.assertRaisesRegex(InputError, expected):
        self.train(made)
      self.assertFalse(os.path.exists(self.folder))

  def test_the_folder_of_a_run_is_no_place(self):
    launch.run_config(configs.configure(TINY, rounds=1), self.folder, silent=True)
    with self.assertRaisesRegex(InputError, 'which is a run'):
      self.train(points(local__lr='0.05,0.1'))


if __name__ == '__main__':
  absltest.main()
