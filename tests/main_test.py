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
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np

from hmm_jax import main
from hmm_jax.experiment import config as defaults
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import plots
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

QUICK = ('--cpu_devices=2', '--config.local.epochs=1', '--config.mlp.hidden=(16,)')


def start(*flags):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu',
                 'XLA_FLAGS': '--xla_backend_optimization_level=0'}
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


def clients(workdir):
  return pathlib.Path(workdir, 'clients.csv').read_bytes()


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
                 'plots/clients.png', 'checkpoints/4', 'events', 'references/local/summary.json',
                 'references/local/clients.csv'):
      self.assertTrue(os.path.exists(self.path('run', name)), name)
    own = Workdir(workdir).read_table('clients')
    self.assertEqual([(r['round'], r['seed'], r['client']) for r in own],
                     [(r, s, k) for r in (2, 4) for s in range(3) for k in range(20)])
    for seed, row in enumerate(rows[-3:]):
      accuracies = [r['test/accuracy'] for r in own if (r['round'], r['seed']) == (4, seed)]
      self.assertAlmostEqual(np.mean(accuracies), float(row['clients/test/accuracy']))

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
    self.assertEqual(clients(self.path('a')), clients(self.path('b')))

  def test_a_personalized_run_beside_federated_averaging(self):
    workdir = self.path('run')
    code, out, err = command(
        f'--workdir={workdir}', '--config.algorithm=fedmerge', '--config.references=fedavg',
        '--config.rounds=2', '--config.eval_every=1', '--config.seeds=2',
        '--config.fedmerge.newcomers=2', '--config.fedmerge.newcomer_rounds=1')
    self.assertEqual((code, err), (0, ''))
    _, table = out.split("accuracy of each client's model on its own test rows")
    shown = [line.split('│')[1:3] for line in table.splitlines() if '±' in line]
    self.assertEqual([[cell.strip() for cell in row] for row in shown],
                     [['fedmerge', 'clients'], ['fedmerge', 'clients, before'],
                      ['fedavg', 'clients']])
    self.assertTrue(os.path.exists(self.path('run', 'plots', 'weight.png')))
    own = {name: Workdir(folder).read_table('clients') for name, folder in (
        ('fedmerge', workdir), ('fedavg', self.path('run', 'references', 'fedavg')))}
    plots.clients(own, self.path('both.png'))
    drawn, wanted = (pathlib.Path(path).read_bytes() for path in (
        self.path('run', 'plots', 'clients.png'), self.path('both.png')))
    self.assertEqual(drawn, wanted)
    for name, view in (('', 'clients'), ('references/fedavg', 'global')):
      summary = json.loads(pathlib.Path(workdir, name, 'summary.json').read_text())
      self.assertEqual(summary['criterion'], f'{view}/validation/accuracy')
    rows = own['fedmerge']
    self.assertLen(rows, 3 * 2 * 20)  # The second round before and after its finish.
    weights = np.array([[row[f'weight/{j}'] for j in range(5)] for row in rows])
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    moved = (weights[40:80] != weights[80:]).any(axis=1).reshape(2, 20)
    self.assertEqual(moved.tolist(), [[False] * 18 + [True] * 2] * 2)

  def test_a_merge_guided_by_central_rows(self):
    flags = ('--config.algorithm=feddle', '--config.rounds=3', '--config.eval_every=3',
             '--config.seeds=1', '--config.server.steps=10', '--config.feddle.tau_max=1',
             '--config.corrupt.kind=random', '--config.corrupt.clients=0.2')
    code, out, err = command(f'--workdir={self.path("run")}', *flags)
    self.assertEqual((code, err), (0, ''))
    self.assertRegex(out, r'server.s rows +│ 160 to learn from, 40 to judge by')
    self.assertRegex(out, r'corrupted clients +│ 4')
    for name in ('coefficients', 'staleness', 'search'):
      self.assertTrue(os.path.exists(self.path('run', 'plots', f'{name}.png')), name)
    workdir = Workdir(self.path('run'))
    anchors, search = workdir.read_table('anchors'), workdir.read_table('search')
    self.assertEqual([sum(r['round'] == n and r['age'] == 0 for r in anchors) for n in (1, 2, 3)],
                     [10] * 3)
    self.assertEqual([(r['round'], r['step']) for r in search],
                     [(n, s) for n in (1, 2, 3) for s in range(0, 11, 2)])
    self.assertEqual({r['corrupted'] for r in workdir.read_table('clients')}, {0, 1})

  def test_patience_stops_on_validation(self):
    code, _, _ = command(f'--workdir={self.path("a")}', '--config.rounds=1000',
                         '--config.eval_every=1', '--config.stop.patience=2',
                         '--config.seeds=1', '--config.local.lr=1e-12')
    self.assertEqual(code, 0)
    self.assertEqual([r['round'] for r in metrics(self.path('a'))], ['1', '2', '3'])

  def test_a_diverging_run_names_clients_and_leaves_the_others_to_finish(self):
    flags = ('--config.eval_every=2', '--config.seeds=1', '--config.local.lr=1e30',
             '--config.rounds=2', "--config.variants=('calm local.lr=0.01',)")
    code, out, err = command(f'--workdir={self.path("a")}', *flags)
    self.assertEqual(code, 1)
    self.assertRegex(
        err, r'^hmm_jax: fedavg diverged in round 1, seed 0: clients \[\d+.*\] .*\n$')
    self.assertRegex(out, r'calm +│ global')
    self.assertTrue(os.path.exists(self.path('a', 'references', 'calm', 'summary.json')))

  def test_killed_at_any_moment_resumes_bit_for_bit(self):
    flags = ('--config.rounds=60', '--config.eval_every=1', '--config.seeds=2',
             '--config.keep_best=True')
    code, _, _ = command(f'--workdir={self.path("whole")}', *flags)
    self.assertEqual(code, 0)
    rng, kills = random.Random(0), 0
    while kills < 10:
      self.kill_after_some_rows(time_left=rng.uniform(0, 0.12), flags=flags)
      kills += 1
    rows = len(metrics(self.path('killed')))
    self.assertLess(rows, 120)  # Otherwise nothing was left to interrupt.
    code, _, err = command(f'--workdir={self.path("killed")}', *flags)
    self.assertEqual((code, err), (0, ''))
    self.assertEqual(metrics(self.path('killed')), metrics(self.path('whole')))
    self.assertEqual(clients(self.path('killed')), clients(self.path('whole')))

  def test_gossip_finishes_with_one_model(self):
    flags = ('--config.algorithm=gossip', '--config.rounds=12', '--config.eval_every=1',
             '--config.seeds=2', '--config.partition.validation=0.0',
             '--config.gossip.topology=matching',
             '--config.gossip.schedule=dense@3:4')
    self.kill_after_some_rows(time_left=0, flags=flags)
    self.assertLess(len(metrics(self.path('killed'))), 24)  # Otherwise nothing was left.
    for name in ('killed', 'whole'):
      code, out, err = command(f'--workdir={self.path(name)}', *flags)
      self.assertEqual((code, err), (0, ''))
      self.assertIn('round 12, before the finish', out)
    rows = metrics(self.path('killed'))
    self.assertEqual(rows, metrics(self.path('whole')))
    self.assertEqual(clients(self.path('killed')), clients(self.path('whole')))

    self.assertEqual([(r['round'], r['seed']) for r in rows],
                     [(str(r), s) for r in (*range(1, 13), 12) for s in '01'])
    for name in ('merged/test/loss', 'consensus', 'bytes_up'):
      self.assertNotEqual(rows[-4][name], rows[-3][name])  # The seeds have runs of their own.
    model = 4 * (64 * 16 + 16 + 16 * 10 + 10)
    for before, after in zip(rows[-4:-2], rows[-2:]):
      for metric in ('accuracy', 'loss'):
        self.assertAlmostEqual(float(after[f'locals/test/{metric}']),
                               float(after[f'merged/test/{metric}']), places=5)
      self.assertLess(float(before['locals/test/accuracy']),
                      float(after['locals/test/accuracy']))
      self.assertGreater(float(before['consensus']), 0.1)
      self.assertLess(float(after['consensus']), 1e-6)
      for way, name in (('up', 'sent'), ('down', 'received')):
        self.assertEqual(int(after[f'bytes_{way}']) - int(before[f'bytes_{way}']), 2 * 19 * model)
        self.assertAlmostEqual(
            20 * float(after[f'agent_{name}/bytes']) / int(after[f'bytes_{way}']), 1, places=5)
      self.assertAlmostEqual(
          float(after['expected/share_of_allreduce']), (11 * 0.2 + 2 * 1.9) / (12 * 1.9), places=5)

  def kill_after_some_rows(self, *, time_left, flags):
    process = start(f'--workdir={self.path("killed")}', *flags)
    self.assertTrue(self.wait_for_rows(process))
    time.sleep(time_left)  # The writes of a round take about 40 ms.
    process.send_signal(signal.SIGKILL)
    process.communicate()

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
      ("--config.variants=('x algorithm=gossip gossip.final_merge=foo',)", 'x: got gossip.final'),
      ('--config.participation=21', '0 (all) to 20'),
      ('--config=/nowhere.py', 'nowhere.py'),
      ('stray', 'stray'),
      (('--config.algorithm=gossip', '--config.gossip.rate=1.5'), 'got gossip.rate=1.5; expected'),
      (('--config.algorithm=gossip', '--config.gossip.schedule=dense@90:101'), "'dense@90:101'"),
      ("--config.variants=('low local.lrr=0.1',)", 'got local.lrr in low'),
      (('--config.algorithm=fedmerge', '--config.partition.validation=0.0'),
       'got partition.validation=0.0, which leaves client 0 without a validation row'),
      (("--config.variants=('own algorithm=fedmerge',)", '--config.partition.test=0.0'),
       'own: got partition.test=0.0, which leaves client 0 without a test row'),
  )
  def test_is_one_line_and_code_2(self, flags, expected):
    with tempfile.TemporaryDirectory() as folder:
      workdir = os.path.join(folder, 'run')
      flags = (flags,) if isinstance(flags, str) else flags
      code, _, err = command(f'--workdir={workdir}', *flags)
      self.assertEqual(code, 2)
      self.assertRegex(err, r'^hmm_jax: .*\n$')
      self.assertIn(expected, err)
      self.assertFalse(os.path.exists(workdir))


def compiling(*args, **kwargs):
  raise AssertionError('something was compiled')


class PersonalBadInputTest(parameterized.TestCase):

  @parameterized.parameters('validation', 'test')
  def test_is_heard_before_anything_is_compiled_or_written(self, name):
    config = defaults.get_config()
    config.update_from_flattened_dict({'algorithm': 'fedmerge', f'partition.{name}': 0.0})
    with tempfile.TemporaryDirectory() as folder:
      workdir = Workdir(os.path.join(folder, 'run'))
      with (mock.patch.object(jax, 'jit', compiling),
            mock.patch.object(Trainer, 'compile', compiling),
            self.assertRaises(InputError) as caught):
        main.train(config, workdir, Screen(silent=True))
      self.assertFalse(os.path.exists(workdir.path))
    self.assertEqual(
        str(caught.exception),
        f'got partition.{name}=0.0, which leaves client 0 without a {name} row; expected a larger '
        'share, or larger clients, for algorithm=fedmerge makes a model for each')


class DefaultWorkdirTest(parameterized.TestCase):

  @parameterized.parameters(
      ('digits', 'digits'), ('emnist/letters', 'letters'), ('npz:/sets/own.npz', 'own'),
      ('text:/sets/speeches.jsonl', 'speeches'), ('text:lines.v2.jsonl.xz', 'lines.v2'),
      ('text:~/speeches.jsonl.gz', 'speeches'))
  def test_is_named_after_the_algorithm_and_the_data(self, dataset, name):
    config = defaults.get_config()
    config.dataset = dataset
    self.assertEqual(main.default_workdir(config), f'runs/fedavg-{name}')


if __name__ == '__main__':
  absltest.main()
