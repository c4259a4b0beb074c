"""The command a user types: results, resuming after a kill, and bad input."""

import csv
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest, parameterized
import numpy as np

QUICK = ('--cpu_devices=2', '--config.local.epochs=1', '--config.mlp.hidden=(16,)')


# Runs that only differ in when they are killed compile once.
CACHE = tempfile.TemporaryDirectory()


def start(*flags):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': CACHE.name,
                 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  return subprocess.Popen([sys.executable, '-m', 'hmm_jax.main', *flags, *QUICK],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment)


def command(*flags):
  process = start(*flags)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def metrics(workdir):
  """Returns the rows of metrics.csv without the column that may differ, seconds."""
  with open(os.path.join(workdir, 'metrics.csv'), newline='') as f:
    return [{k: v for k, v in row.items() if k != 'seconds'} for row in csv.DictReader(f)]


def snapshot(folder):
  """Returns {file: content} of everything below a folder."""
  return {path: path.read_bytes() for path in pathlib.Path(folder).rglob('*') if path.is_file()}


class RunTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = folder.name

  def path(self, *names):
    return os.path.join(self.folder, *names)

  def test_leaves_everything_a_user_reads(self):
    workdir = self.path('run')
    code, out, err = command(f'--workdir={workdir}', '--config.rounds=4', '--config.eval_every=2',
                             '--config.references=local', '--config.keep_best=True',
                             '--config.tensorboard=True')
    self.assertEqual((code, err), (0, ''))
    self.assertIn('global/test/accuracy', out)
    rows = metrics(workdir)
    self.assertEqual([(r['round'], r['seed']) for r in rows],
                     [(r, s) for r in '24' for s in '012'])
    parameters = 64 * 16 + 16 + 16 * 10 + 10
    self.assertEqual({int(r['bytes_up']) for r in rows if r['round'] == '4'},
                     {4 * 10 * parameters * 4})
    summary = json.loads(pathlib.Path(workdir, 'summary.json').read_text())
    last = [float(r['global/test/accuracy']) for r in rows[-3:]]
    self.assertAlmostEqual(summary['last']['global/test/accuracy']['mean'], np.mean(last))
    self.assertAlmostEqual(summary['last']['global/test/accuracy']['std'], np.std(last, ddof=1))
    for name in ('config.json', 'plots/partition.png', 'plots/accuracy.png', 'plots/loss.png',
                 'checkpoints/4', 'events', 'references/local/summary.json'):
      self.assertTrue(os.path.exists(self.path('run', name)), name)

    before = snapshot(workdir)
    code, out, _ = command(f'--workdir={workdir}', '--config.rounds=4', '--config.eval_every=2',
                           '--config.references=local', '--config.keep_best=True',
                           '--config.tensorboard=True')
    self.assertEqual(code, 0)
    self.assertIn('is finished', out)
    self.assertIn('global/test/accuracy', out)
    self.assertEqual(snapshot(workdir), before)

  def test_more_rounds_continue_a_finished_run(self):
    flags = ('--config.eval_every=2', '--config.algorithm=scaffold', '--config.seeds=2')
    command(f'--workdir={self.path("a")}', '--config.rounds=4', *flags)
    code, _, err = command(f'--workdir={self.path("a")}', '--config.rounds=8', *flags)
    self.assertEqual((code, err), (0, ''))
    command(f'--workdir={self.path("b")}', '--config.rounds=8', *flags)
    self.assertEqual(metrics(self.path('a')), metrics(self.path('b')))

  def test_patience_stops_on_validation(self):
    code, _, _ = command(f'--workdir={self.path("a")}', '--config.rounds=1000',
                         '--config.eval_every=1', '--config.stop.patience=2',
                         '--config.seeds=1', '--config.local.lr=1e-12')
    self.assertEqual(code, 0)
    self.assertEqual([r['round'] for r in metrics(self.path('a'))], ['1', '2', '3'])

  def test_a_diverging_run_stops_and_names_clients(self):
    flags = ('--config.eval_every=2', '--config.seeds=1', '--config.local.lr=1e30')
    code, _, err = command(f'--workdir={self.path("a")}', *flags)
    self.assertEqual(code, 1)
    self.assertRegex(err, r'^hmm_jax: diverged in round 1, seed 0: clients \[\d+.*\] .*\n$')

  def test_killed_at_any_moment_resumes_bit_for_bit(self):
    flags = ('--config.rounds=60', '--config.eval_every=1', '--config.seeds=2',
             '--config.keep_best=True')
    code, _, _ = command(f'--workdir={self.path("whole")}', *flags)
    self.assertEqual(code, 0)
    rng, kills = random.Random(0), 0
    while kills < 10:
      process = start(f'--workdir={self.path("killed")}', *flags)
      self.assertTrue(self.wait_for_rows(process))
      time.sleep(rng.uniform(0, 0.12))  # The writes of a round take about 40 ms.
      process.send_signal(signal.SIGKILL)
      process.communicate()
      kills += 1
    rows = len(metrics(self.path('killed')))
    self.assertLess(rows, 120)  # Otherwise nothing was left to interrupt.
    code, _, err = command(f'--workdir={self.path("killed")}', *flags)
    self.assertEqual((code, err), (0, ''))
    self.assertEqual(metrics(self.path('killed')), metrics(self.path('whole')))

  def wait_for_rows(self, process):
    """Waits until a started run has written a new metrics.csv."""
    path = self.path('killed', 'metrics.csv')
    stamp = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
    while process.poll() is None:
      if os.path.exists(path) and os.stat(path).st_mtime_ns != stamp:
        return True
      time.sleep(0.002)
    return False


class BadInputTest(parameterized.TestCase):

  @parameterized.parameters(
      ('--config.local.lrr=1', 'did you mean local.lr'),
      ('--config.rounds=abc', 'rounds'),
      ('--config.rounds=0', 'at least 1'),
      ('--config.algorithm=fedavgg', 'did you mean fedavg'),
      ('--config.dataset=mnistt', 'mnist'),
      ('--config.participation=21', '0 (all) to 20'),
      ('--config=/nowhere.py', 'nowhere.py'),
      ('stray', 'stray'),
  )
  def test_is_one_line_and_code_2(self, flag, expected):
    with tempfile.TemporaryDirectory() as folder:
      workdir = os.path.join(folder, 'run')
      code, _, err = command(f'--workdir={workdir}', flag)
      self.assertEqual(code, 2)
      self.assertRegex(err, r'^hmm_jax: .*\n$')
      self.assertIn(expected, err)
      self.assertFalse(os.path.exists(workdir))


def tearDownModule():
  CACHE.cleanup()


if __name__ == '__main__':
  absltest.main()
