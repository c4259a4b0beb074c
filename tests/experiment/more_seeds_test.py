"""Seeds that come later leave what a run of all seeds leaves, whenever joining them is killed."""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
import pytest
from reference import faults

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import launch, more_seeds
from hmm_jax.experiment.saved import Run
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

TINY = {'dataset': 'synthetic', 'partition.kind': 'iid', 'mlp.hidden': (4,), 'mapper': 'map',
        'rounds': 4, 'eval_every': 2, 'local.epochs': 1, 'clients': 6, 'participation': 3,
        'plots': False}
GOSSIP = {'algorithm': 'gossip', 'participation': 0}  # It ends with a merge.
FEDDLE = {'algorithm': 'feddle', 'server.size': 40}  # It has tables of its own.
COSTS = ('seconds', 'wall_seconds', 'compile_seconds', 'train_seconds', 'peak_memory_bytes')


def train(path, changes=None, **more):
  config = configs.configure(TINY | (changes or {}), **more)
  return launch.train(config, Workdir(path), Screen(silent=True))


def contents(path):
  """Returns all that a run leaves, without what it took."""
  without = lambda values: {key: without(value) if isinstance(value, dict) else value
                            for key, value in values.items() if key not in COSTS}
  workdir = Workdir(path)
  tables = {name: (workdir.table(name).columns(), [*map(without, workdir.read_table(name))])
            for name in ('metrics', 'clients', 'anchors', 'search')}
  folders = {name: sorted(os.listdir(workdir.file(name))) for name in ('checkpoints', 'manifests')}
  return (tables, folders, without(workdir.read_json('summary.json')),
          workdir.read_json('config.json'), sorted(os.listdir(path)))


def check_kills(folder):
  """Kills the joining of seeds at its n-th change of a file, for all n."""
  start, whole = os.path.join(folder, 'start'), os.path.join(folder, 'whole')
  train(whole, seeds=2)
  train(start, seeds=1)
  with (mock.patch.object(more_seeds, 'join', side_effect=faults.Killed),
        contextlib.suppress(faults.Killed)):
    train(start, seeds=2)
  join, n, failed = more_seeds.join, 1, True
  while failed:
    path = os.path.join(folder, str(n))
    shutil.copytree(start, path)

    def killed(*args, n=n):
      nonlocal failed
      try:
        with faults.failing(n, 'killed') as fault:
          join(*args)
      finally:
        failed = fault.count >= n

    with mock.patch.object(more_seeds, 'join', killed), contextlib.suppress(faults.Killed):
      train(path, seeds=2)
    # Whoever reads it now finds a run of one seed or of two.
    read = Run.load(path)
    assert {row['seed'] for row in read.metrics} == {*read.seeds}, n
    assert jax.tree.leaves(read.states)[0].shape[0] == len(read.seeds), n
    train(path, seeds=2)
    assert contents(path) == contents(whole), n
    n += 7
  assert n > 30, n


def ending(check, *arguments):
  """Runs a check and ends the process, for whose threads of Orbax nothing waits."""
  code = 1
  try:
    check(*arguments)
    code = 0
  finally:
    os._exit(code)


class MoreSeedsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = os.path.join(self.folder, 'run')

  def check_equals_a_run_of_all(self, changes, *seeds):
    for count in seeds:
      train(self.path, changes, seeds=count)
    whole = os.path.join(self.folder, 'whole')
    train(whole, changes, seeds=seeds[-1])
    self.assertEqual(contents(self.path), contents(whole))
    for a, b in zip(*(jax.tree.leaves(Run.load(p).states) for p in (self.path, whole))):
      np.testing.assert_array_equal(a, b)

  def test_equal_a_run_of_all_seeds_bit_for_bit(self):
    self.check_equals_a_run_of_all({'keep_best': True, 'references': ''}, 1, 3)

  @parameterized.named_parameters(('merge', GOSSIP, 2, 3), ('tables', FEDDLE, 2, 4),
                                  ('twice', {}, 1, 2, 4))
  @pytest.mark.slow
  def test_so_do_those_of(self, changes, *seeds):
    self.check_equals_a_run_of_all(changes, *seeds)

  @pytest.mark.slow
  def test_more_rounds_and_seeds_at_once_go_on_with_an_unfinished_run(self):
    train(self.path, seeds=1, rounds=2)
    summary = train(self.path, seeds=2, rounds=4)
    self.assertEqual((summary['rounds'], summary['seeds']), (4, [0, 1]))
    self.check_equals_a_run_of_all({}, 2)

  @pytest.mark.slow
  def test_a_kill_at_any_change_of_a_file_loses_nothing(self):
    process = multiprocessing.get_context('spawn').Process(
        target=ending, args=(check_kills, self.folder))
    process.start()
    process.join()
    self.assertEqual(process.exitcode, 0)

  def leave(self, rounds=(2, 4), **saved):
    """Leaves what a run of one seed would, evaluated in some rounds."""
    workdir = Workdir(self.path)
    workdir.make()
    workdir.write_json('config.json', configs.configure(TINY | saved, seeds=1).to_dict())
    workdir.table('metrics').write([{'round': r, 'seed': 0, 'seconds': 1.0} for r in rounds])

  @parameterized.named_parameters(
      ('patience', {'stop.patience': 2}, (2, 4), 'with stop.patience=2; expected seeds=1'),
      ('odd_rounds', {}, (1, 2, 4), 'was evaluated in round 1; expected evaluations every 2'))
  def test_seeds_that_could_not_be_equal_are_refused(self, changes, rounds, expected):
    self.leave(rounds, **changes)
    with self.assertRaisesRegex(InputError, f'got seeds=3 for a run of 1 .*{expected}'):
      train(self.path, changes, seeds=3)
    self.assertCountEqual(os.listdir(self.path), ['config.json', 'metrics.csv'])

  def test_fewer_seeds_and_another_first_one_are_refused(self):
    self.leave(seed=1)
    with self.assertRaisesRegex(InputError, 'got seed=0'):
      train(self.path, seeds=3)
    self.leave(seed=0)
    saved = Workdir(self.path).read_json('config.json')
    Workdir(self.path).write_json('config.json', saved | {'seeds': 3})
    with self.assertRaisesRegex(InputError, 'got seeds=2 .* made with seeds=3'):
      train(self.path, seeds=2)


if __name__ == '__main__':
  absltest.main()
