"""DMM's ablation: its variants merge what a run has trained."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl.testing import absltest
import pytest

from hmm_jax.experiment.workdir import Workdir

ROOT = pathlib.Path(__file__).parent.parent
TINY = ('--config.plots=false',
        '--config.algorithm=dmm', '--config.model=fusion', '--config.fusion.channels=(4,)',
        '--config.fusion.hidden=8', '--config.clients=3', '--config.participation=0',
        '--config.partition.kind=iid', '--config.rounds=1', '--config.eval_every=1',
        '--config.seeds=2', '--config.dmm.batch=8', '--config.dmm.batches=2',
        '--config.dmm.steps=5', '--config.inversion.steps=5', '--config.dmm.threshold=0',
        '--config.dmm.teachers=all', '--config.mapper=map', '--config.subset=0.3')


def command(*arguments):
  """Runs a process; returns its exit code, and what it says."""
  done = subprocess.run(
      [sys.executable, *arguments], capture_output=True, text=True, check=False,
      env={**os.environ, 'PYTHONPATH': str(ROOT)})
  return done.returncode, done.stdout, done.stderr


def ladder(*flags):
  """Runs experiments/ladder.py."""
  return command(str(ROOT / 'experiments' / 'ladder.py'), *flags)


@pytest.mark.slow
class LadderTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.trained = f'{folder.name}/run'
    code, _, err = command('-m', 'hmm_jax.main', f'--workdir={cls.trained}', *TINY)
    assert code == 0, err

  def test_variants_are_merged_from_the_run(self):
    code, out, err = ladder(f'--workdir={self.trained}', '--variants=inverted,average,loose')
    self.assertEqual((code, err), (0, ''))
    path = pathlib.Path(self.trained, 'ladder.json')
    made = json.loads(path.read_text())['arms']
    self.assertEqual(list(made), ['inverted', 'average', 'loose'])
    # A threshold of 0 is what the run has finished with, and `inverted` is the run's own.
    rows = Workdir(self.trained).read_metrics()[-2:]
    for metric in ('global/test/accuracy', 'global/test/loss', 'inversion/found_loss'):
      for name in ('inverted', 'loose'):
        self.assertEqual(made[name][metric]['seeds'], [row[metric] for row in rows], name)
    self.assertLen({made[name]['global/test/loss']['mean'] for name in made}, 2)
    self.assertRegex(out, f'average +│ {made["average"]["global/test/accuracy"]["mean"]:.4f} ±')
    self.assertTrue(os.path.exists(f'{self.trained}/plots/inverted.png'))

    was = path.stat().st_mtime_ns
    code, again, err = ladder(f'--workdir={self.trained}', '--variants=average')
    self.assertEqual((code, err, path.stat().st_mtime_ns), (0, '', was))
    self.assertIn('average', again)

  def test_where_branches_meet_nothing_is_matched(self):
    run = pathlib.Path(self.trained).with_name('branches')
    run.mkdir()
    shutil.copy(f'{self.trained}/metrics.csv', run)
    config = Workdir(self.trained).read_json('config.json')
    config |= {'dataset': 'crisismmd', 'crisismmd': {**config['crisismmd'], 'modalities': 'both'}}
    Workdir(str(run)).write_json('config.json', config)
    made = {'rounds': 1, 'arms': {'ties': {'global/test/accuracy': {
        'mean': 0.375, 'std': 0.1768, 'seeds': [0.25, 0.5]}}}}
    (run / 'ladder.json').write_text(json.dumps(made))
    code, out, err = ladder(f'--workdir={run}', '--variants=ties,matched,pleas')
    self.assertEqual((code, err), (0, ''))
    self.assertIn('0.2500', out)
    self.assertNotIn('pleas', out)

  def test_bad_input_is_one_line_and_code_2(self):
    bare = pathlib.Path(self.trained).with_name('bare')
    other = pathlib.Path(self.trained).with_name('other')
    for folder in (bare, other):
      folder.mkdir()
      for name in ('config.json', 'metrics.csv'):
        shutil.copy(f'{self.trained}/{name}', folder)
    config = Workdir(str(other)).read_json('config.json')
    Workdir(str(other)).write_json('config.json', config | {'algorithm': 'merging'})
    for flags, expected in (
        ((f'--workdir={self.trained}', '--variants=core,sore'), 'got variants=sore'),
        ((f'--workdir={other}',), 'expected that of a finished run of dmm'),
        ((f'--workdir={bare}', '--variants=core'), 'without a checkpoint')):
      code, _, err = ladder(*flags)
      self.assertEqual(code, 2, err)
      self.assertRegex(err, r'^hmm_jax: .*\n$')
      self.assertIn(expected, err)
    self.assertLen(list(bare.iterdir()), 2)


if __name__ == '__main__':
  absltest.main()
