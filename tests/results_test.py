"""Recorded runs: a finished run's folder becomes lines of its study's file, printed as before."""

import contextlib
import importlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
import pytest

from hmm_jax.experiment import config as configs
from hmm_jax.experiment.run import figures, over_seeds
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import tables
from hmm_jax.report.screen import Screen

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / 'experiments'))
results = importlib.import_module('results')

SEEDS = (3, 4)
CRITERION = 'global/validation/loss'


def command(script, *arguments):
  """Runs a script of the studies; returns its exit code, and what it says."""
  done = subprocess.run(
      [sys.executable, str(ROOT / 'experiments' / script), *arguments], capture_output=True,
      text=True, check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)})
  return done.returncode, done.stdout, done.stderr


def printed(function, *arguments) -> str:
  with contextlib.redirect_stdout(io.StringIO()) as out:
    function(*arguments)
  return out.getvalue()


def finished_run(path: str, **changes) -> dict:
  """Makes the folder of a run that has finished with a merge; returns its summary."""
  workdir, rng = Workdir(path), np.random.default_rng(len(path))
  config = configs.configure({'seed': SEEDS[0], 'seeds': len(SEEDS), **changes})
  rows = [{'round': number, 'seed': seed, 'seconds': number / 7, 'bytes_up': 5 * number,
           'train/loss': float(rng.random()), CRITERION: float(np.float32(rng.random())),
           'global/test/accuracy': float(np.float32(rng.random())),
           **({'consensus': float('nan')} if number > 1 else {})}
          for number in (1, 2, 2) for seed in SEEDS]
  summary = figures(rows, SEEDS, CRITERION) | {
      'rounds_requested': 2, 'criterion': CRITERION, 'peak_memory_bytes': 2**30,
      'device': '1 x toy', 'versions': {'jax': '0'}, 'compile_seconds': 0.25}
  workdir.make()
  workdir.write_json('config.json', config.to_dict())
  workdir.table('metrics').write(rows)
  workdir.write_json('summary.json', summary)
  return summary


class ResultsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enter_context(tempfile.TemporaryDirectory())

  def test_a_recorded_run_is_the_run(self):
    path = f'{self.folder}/run'
    summaries = {'mine': finished_run(path, name='mine', variants=('b seed=3', 'cc seed=3'))}
    for name in ('b', 'cc', 'aaa'):  # The last is not in the config.
      summaries[name] = finished_run(f'{path}/references/{name}', **{'local.lr': 0.5})
    variants = {name: over_seeds([{'seed': s, 'global/test/accuracy': s / share} for s in SEEDS])
            for name, share in (('some', 7), ('all', 9))}
    Workdir(path).write_json('ladder.json', {'rounds': 2, 'arms': variants})

    self.enter_context(mock.patch.object(results, 'FOLDER', pathlib.Path(self.folder, 'results')))
    for run in ('first', 'again', 'first'):
      results.add('dmm', run, path)
    runs = results.load('dmm')
    self.assertEqual(list(runs), ['first', 'again'])
    self.assertEqual(list(runs['again']), list(summaries))
    for name, kept in runs['again'].items():
      np.testing.assert_equal(results.summary(kept), summaries[name])
    self.assertEqual(runs['again']['b']['config'], configs.flat(
        Workdir(f'{path}/references/b').read_json('config.json')))
    expected = ('dmm again\n' + printed(tables.show, summaries, Screen())
                + printed(tables.show_arms, 'dmm again', variants, SEEDS, Screen()))
    self.assertEqual(printed(results.show, 'dmm', 'again'), expected)
    self.assertIn(expected, printed(results.show, 'dmm'))
    self.assertRegex(expected, r'│ some +│ 0.5000 ± 0.1010 │ 0.4286 │ 0.5714 │')

  def test_arrivals_are_kept_for_the_coefficients(self):
    path = f'{self.folder}/run'
    finished_run(path)
    rows = [{'round': number, 'seed': seed, 'age': age, 'client': 7 * number, 'average': 0.1,
             'coefficient': -seed / 3} for number in (1, 2) for seed in SEEDS for age in (0, 1)]
    Workdir(path).table('anchors').append(rows)
    Workdir(path).table('clients').append([
        {'round': 2, 'seed': seed, 'client': k, 'corrupted': k % 2}
        for seed in SEEDS for k in range(4)])
    self.enter_context(mock.patch.object(results, 'FOLDER', pathlib.Path(self.folder, 'results')))
    results.add('feddle', 'noisy', path)
    kept = results.recorded_arrivals()['noisy']
    self.assertEqual((kept['corrupted'], kept['seeds']), ([1, 3], list(SEEDS)))
    self.assertEqual(results.unpack(kept, 2), [
        [{'client': k, 'coefficient': -seed / 3, 'average': 0.1} for k in (7, 14)]
        for seed in SEEDS])

  def test_a_summary_of_other_metrics_is_refused(self):
    summary = finished_run(self.folder)
    Workdir(self.folder).write_json('summary.json', summary | {'train_seconds': 1.5})
    with self.assertRaisesRegex(results.InputError, 'expected what metrics.csv says'):
      results.record(self.folder)

  def test_bad_input_is_named(self):
    for words, record, expected in (
        (['diamonds'], None, 'got study diamonds; expected one of dmm, feddle, '),
        (['fedmr', 'alpha_9'], None, 'got run alpha_9; expected one of alpha_0.1, alpha_0.5'),
        (['fedmr', 'mine'], 'nowhere', 'got nowhere; expected the folder of a finished run'),
        (['fedmr'], 'nowhere', 'got fedmr to record by; expected STUDY RUN')):
      with (mock.patch.object(results, 'RECORD', SimpleNamespace(value=record)),
            self.assertRaisesRegex(results.InputError, expected)):
        results.main(['results.py', *words])

  @pytest.mark.slow
  def test_bad_input_is_one_line_and_code_2(self):
    code, out, err = command('results.py', 'diamonds')
    self.assertEqual((code, out), (2, ''))
    self.assertRegex(err, r'^hmm_jax: got study diamonds.*\n$')


class RecordedTest(parameterized.TestCase):

  @parameterized.parameters(*results.studies())
  def test_every_run_prints(self, study):
    runs, out = results.load(study), printed(results.show, study)
    for run, named in runs.items():
      self.assertIn(f'{study} {run}\n', out)
      for variant, metrics in results.ladder(next(iter(named.values()))).items():
        self.assertIn(f'│ {variant} ', out)
        self.assertIn(tables.spread(metrics['global/test/accuracy']), out)
    self.assertEqual(out.count('mean ± std over seeds'), len(runs))

  def test_all_studies_are_there(self):
    with mock.patch.object(results, 'RECORD', SimpleNamespace(value=None)):
      out = printed(results.main, ['results.py'])
    self.assertEqual([line.split(':')[0] for line in out.splitlines()], [
        'dmm', 'feddle', 'federated_images', 'fedmerge', 'fedmr', 'single_merging', 'speakers'])

  def test_noisy_clients_get_lower_coefficients(self):
    code, out, err = command('coefficients.py', '--workdir=noisy_0.3', '--clean=in_domain')
    self.assertEqual((code, err), (0, ''))
    self.assertIn('effect -0.1238 ± 0.0094 over 3 seeds, 15 corrupted clients', out)

  def test_the_tree_stays_light(self):
    files = [path for path in results.FOLDER.rglob('*') if path.is_file()]
    self.assertLessEqual(len(files), 60)
    self.assertLess(sum(path.stat().st_size for path in files), 3e6)


if __name__ == '__main__':
  absltest.main()
