"""The command a user types: what it reads, what it leaves, and what it says of bad input."""

import contextlib
import csv
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
import pytest

from hmm_jax.experiment import config as configs
from hmm_jax.experiment.trainer import Diverged
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.main import train as main
from hmm_jax.report.plots import clients as client_plots
from hmm_jax.report.style import save_pair
from hmm_jax.types import InputError

QUICK = ('--config.local.epochs=1', '--config.mlp.hidden=(16,)')


def start(*flags):
  """Starts the command in a process of its own."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}  # Which compiles as the tests do.
  return subprocess.Popen(
      [sys.executable, '-m', 'hmm_jax.main', '--cpu_devices=2', *flags, *QUICK],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def command(*flags):
  process = start(*flags)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def here(workdir, *flags, tables='all'):
  """Does what the command does, in this process and on its devices; returns the output."""
  config, argv = main.read_command(['main', '--config.mapper=map', *QUICK, *flags])
  with (mock.patch.object(main, 'WORKDIR', SimpleNamespace(value=workdir)),
        mock.patch.object(main, 'TABLES', SimpleNamespace(value=tables)),
        mock.patch.object(main.devices, 'prepare_from_flags'),
        contextlib.redirect_stdout(io.StringIO()) as out):
    main.main(config, argv)
  return out.getvalue()


def metrics(workdir):
  """Returns the rows of metrics.csv without the column that may differ, seconds."""
  with open(os.path.join(workdir, 'metrics.csv'), newline='') as f:
    return [{k: v for k, v in row.items() if k != 'seconds'} for row in csv.DictReader(f)]


def clients(workdir):
  return pathlib.Path(workdir, 'clients.csv').read_bytes()


def snapshot(folder):
  """Returns {file: content} of everything below a folder."""
  return {path: path.read_bytes() for path in pathlib.Path(folder).rglob('*') if path.is_file()}


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def path(self, *names):
    return os.path.join(self.folder, *names)


class ReadCommandTest(FolderTest):

  def read(self, *words):
    config, rest = main.read_command(['main', *words])
    return configs.flat(config), rest

  def test_keys_change_the_defaults_and_other_words_are_left(self):
    config, rest = self.read('--config.rounds=7', '--workdir=a', '-config.local.lr=1', 'stray',
                             '--config.mlp.hidden', '(3, 4)', '--nocompile_cache')
    expected = configs.configure({'local.lr': 1.0, 'mlp.hidden': (3, 4)}, rounds=7)
    self.assertEqual(config, configs.flat(expected))
    self.assertEqual(rest, ['main', '--workdir=a', 'stray', '--nocompile_cache'])

  @parameterized.parameters('--config={}', '--config {}')
  def test_a_file_comes_before_the_keys(self, flag):
    path = self.path('study.py')
    pathlib.Path(path).write_text('''
from hmm_jax.experiment.config import configure
def get_config(text='9'):
  return configure({'local.lr': 0.5}, rounds=int(text))
''')
    words = flag.format(f'{path}:8').split()
    config, rest = self.read('--config.local.lr=0.25', *words, '--config.seeds=1')
    self.assertEqual((config['rounds'], config['local.lr'], config['seeds']), (8, 0.25, 1))
    self.assertEqual(rest, ['main'])

  def test_old_keys_and_values_are_read(self):
    config, _ = self.read('--config.normalise=none', '--config.algorithm=centralised',
                          '--config.fedmerge.weight_step=max_normalised',
                          '--config.dmm.whose=each')
    self.assertEqual(
        [config[key] for key in ('normalize', 'algorithm', 'fedmerge.weight_step',
                                 'dmm.statistics_of')],
        ['none', 'centralized', 'max_normalized', 'each'])

  @parameterized.named_parameters(
      ('unknown_key', '--config.local.lrr=1', 'got local.lrr .*did you mean local.lr'),
      ('wrong_type', '--config.rounds=abc', 'got rounds=abc; expected a value like 100'),
      ('no_value', '--config.rounds', 'got --config.rounds without a value'),
      ('no_file', '--config=/nowhere.py', 'got config=/nowhere.py'),
      ('no_python', '--config=study.txt', 'got config=study.txt'))
  def test_bad_input_is_named(self, word, expected):
    with self.assertRaisesRegex(InputError, expected):
      self.read(word)

  @parameterized.named_parameters(
      ('no_get_config', 'x = 1', 'get_config'),
      ('fails', '1 / 0', 'fails with ZeroDivisionError'),
      ('no_config', 'get_config = dict', 'returns dict'))
  def test_a_file_that_is_no_config_is_named(self, content, expected):
    path = self.path('study.py')
    pathlib.Path(path).write_text(content)
    with self.assertRaisesRegex(InputError, f'got config={path}, .*{expected}'):
      self.read(f'--config={path}')


  def test_a_file_imports_its_neighbors_and_may_lie_anywhere(self):
    folder = pathlib.Path(self.path('a.py.folder'))
    folder.mkdir()
    (folder / 'grid_of_mine.py').write_text('RATE = 0.25\n')
    (folder / 'study.py').write_text(
        'from ml_collections import ConfigDict\nfrom grid_of_mine import RATE\n'
        'def get_config(rounds="3"):\n'
        '  return ConfigDict({"rounds": int(rounds), "local": {"lr": RATE}})\n')
    self.addCleanup(sys.modules.pop, 'grid_of_mine', None)
    before = list(sys.path)
    config, _ = self.read(f'--config={folder / "study.py"}:7', '--config.seeds=2',
                          '--config.gossip.rate=0.5')
    self.assertEqual([config[key] for key in ('rounds', 'local.lr', 'seeds', 'gossip.rate')],
                     [7, 0.25, 2, 0.5])
    self.assertEqual(sys.path, before)


class UnmetTest(parameterized.TestCase):

  @parameterized.parameters(
      (MemoryError('Unable to allocate 7 TiB'), 'too little memory.*7 TiB'),
      (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\nmore'), 'too little memory'),
      (jax.errors.JaxRuntimeError('INTERNAL: bug'), r'\Z'), (ValueError('bug'), r'\Z'))
  def test_only_what_is_no_bug_is_a_line(self, error, expected):
    self.assertRegex(main.unmet(error), rf'\A(got )?{expected}')
    self.assertNotIn('\n', main.unmet(error))


class RunTest(FolderTest):

  @pytest.mark.draws
  def test_leaves_everything_a_user_reads(self):
    workdir = self.path('run')
    flags = ('--config.rounds=4', '--config.eval_every=2', '--config.references=local',
             '--config.keep_best=True', '--config.track=tensorboard', '--config.mapper=map',
             '--config.seeds=2')
    code, out, err = command(f'--workdir={workdir}', *flags)
    self.assertEqual((code, err), (0, ''))
    last = out[out.rindex('test accuracy: mean ± std over 2 seeds, which share one partition'):]
    self.assertEqual([line.split('│')[1].strip() for line in last.splitlines() if '│' in line],
                     ['fedavg', 'fedavg', 'local', 'local'])
    self.assertNotIn('train/loss │', out)  # All metrics are shown on request.
    rows = metrics(workdir)
    self.assertEqual([(r['round'], r['seed']) for r in rows],
                     [(r, s) for r in '24' for s in '01'])
    parameters = 64 * 16 + 16 + 16 * 10 + 10
    self.assertEqual({int(r['bytes_up']) for r in rows if r['round'] == '4'},
                     {4 * 10 * parameters * 4})
    summary = json.loads(pathlib.Path(workdir, 'summary.json').read_text())
    last = [float(r['global/test/accuracy']) for r in rows[-2:]]
    self.assertAlmostEqual(summary['last']['global/test/accuracy']['mean'], np.mean(last))
    self.assertAlmostEqual(summary['last']['global/test/accuracy']['std'], np.std(last, ddof=1))
    for name in ('config.json', 'partition.csv', 'report.html', 'plots/partition.png',
                 'plots/accuracy.png', 'plots/accuracy.pdf', 'plots/loss.png',
                 'plots/clients.png', 'checkpoints/4', 'events', 'references/local/summary.json',
                 'references/local/clients.csv'):
      self.assertTrue(os.path.exists(self.path('run', name)), name)
    own = Workdir(workdir).read_table('clients')
    self.assertEqual([(r['round'], r['seed'], r['client']) for r in own],
                     [(r, s, k) for r in (2, 4) for s in range(2) for k in range(20)])
    for seed, row in enumerate(rows[-2:]):
      accuracies = [r['test/accuracy'] for r in own if (r['round'], r['seed']) == (4, seed)]
      self.assertAlmostEqual(np.mean(accuracies), float(row['clients/test/accuracy']))

    before = snapshot(workdir)
    out = here(workdir, *flags)
    self.assertIn('is finished', out)
    self.assertIn('global/test/accuracy', out)
    self.assertEqual(snapshot(workdir), before)

  @pytest.mark.slow
  def test_more_rounds_continue_a_finished_run(self):
    flags = ('--config.eval_every=2', '--config.algorithm=scaffold', '--config.seeds=2')
    for name, rounds in (('a', 2), ('a', 4), ('b', 4)):
      here(self.path(name), f'--config.rounds={rounds}', *flags)
    self.assertEqual(metrics(self.path('a')), metrics(self.path('b')))
    self.assertEqual(clients(self.path('a')), clients(self.path('b')))

  @pytest.mark.draws
  def test_a_personalized_run_beside_federated_averaging(self):
    workdir = self.path('run')
    out = here(
        workdir, '--config.algorithm=fedmerge', '--config.references=fedavg',
        '--config.rounds=2', '--config.eval_every=1', '--config.seeds=2',
        '--config.fedmerge.newcomers=2', '--config.fedmerge.newcomer_rounds=1')
    _, table = out.split("accuracy of each client's model on its own test")
    shown = [line.split('│')[1:3] for line in table.splitlines()
             if '±' in line and '│' in line]
    self.assertEqual([[cell.strip() for cell in row] for row in shown],
                     [['fedmerge', 'clients'], ['fedmerge', 'clients, before'],
                      ['fedavg', 'clients']])
    self.assertTrue(os.path.exists(self.path('run', 'plots', 'weight.png')))
    own = {name: Workdir(folder).read_table('clients') for name, folder in (
        ('fedmerge', workdir), ('fedavg', self.path('run', 'references', 'fedavg')))}
    title = 'fedmerge · digits · dirichlet (alpha 0.1), 20 clients'
    save_pair(client_plots.clients(own, title), self.path('both'))
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

  @pytest.mark.draws
  def test_feddle_leaves_its_tables_and_plots(self):
    out = here(self.path('run'), '--config.algorithm=feddle', '--config.rounds=3',
               '--config.eval_every=3', '--config.seeds=1', '--config.server.steps=10',
               '--config.feddle.tau_max=1', '--config.corrupt.kind=random',
               '--config.corrupt.clients=0.2')
    self.assertRegex(out, r'server.* │ 160 to learn from, 40 held out')
    self.assertRegex(out, r'corrupted clients +│ 4')
    for name in ('coefficients', 'staleness', 'search'):
      self.assertTrue(os.path.exists(self.path('run', 'plots', f'{name}.png')), name)
    workdir = Workdir(self.path('run'))
    anchors, search = workdir.read_table('anchors'), workdir.read_table('search')
    self.assertEqual(set(anchors[0]), {'round', 'seed', 'client', 'delay', 'age', 'coefficient',
                                       'average'})
    fresh = [[row for row in anchors if row['round'] == n and row['age'] == 0] for n in (1, 2, 3)]
    self.assertEqual([len(rows) for rows in fresh], [10] * 3)
    self.assertTrue(all('delay' in row for rows in fresh for row in rows))
    # Ten steps have five checkpoints after the start.
    self.assertEqual([(r['round'], r['step']) for r in search],
                     [(n, s) for n in (1, 2, 3) for s in range(0, 11, 2)])
    self.assertContainsSubset({'server/gradients', 'server/forwards', 'server/fallback'},
                              workdir.read_metrics()[-1])
    self.assertEqual({r['corrupted'] for r in workdir.read_table('clients')}, {0, 1})

  def test_patience_stops_on_validation(self):
    here(self.path('a'), '--config.rounds=1000', '--config.eval_every=1',
         '--config.stop.patience=2', '--config.seeds=1', '--config.local.lr=1e-12')
    self.assertEqual([r['round'] for r in metrics(self.path('a'))], ['1', '2', '3'])

  @pytest.mark.draws
  def test_a_diverging_run_is_named_and_leaves_the_others_to_finish(self):
    with self.assertRaisesRegex(
        Diverged, r'fedavg diverged in round 1, seed 0: clients \[\d+.*\] .*'):
      here(self.path('a'), '--config.seeds=1', '--config.rounds=1', '--config.local.lr=1e30',
           "--config.variants=('calm local.lr=0.01',)")
    self.assertTrue(os.path.exists(self.path('a', 'references', 'calm', 'summary.json')))
    self.assertTrue(os.path.exists(self.path('a', 'plots', 'clients.png')))  # Of the calm one.

  def test_a_diverged_run_ends_with_one_line_and_code_1(self):
    fails = mock.Mock(side_effect=Diverged('fedavg diverged'))
    with (contextlib.redirect_stderr(io.StringIO()) as err,
          self.assertRaises(SystemExit) as caught):
      main.entry(['main'], fails)
    self.assertEqual(caught.exception.code, 1)
    self.assertEqual(err.getvalue(), 'hmm_jax: fedavg diverged\n')

  def test_gossip_finishes_with_one_model(self):
    workdir = self.path('run')
    out = here(workdir, '--config.algorithm=gossip', '--config.rounds=12', '--config.eval_every=4',
               '--config.seeds=2', '--config.partition.validation=0.0',
               '--config.gossip.topology=matching', '--config.gossip.schedule=dense@3:4')
    self.assertIn('round 12, before the finish', out)
    rows = metrics(workdir)
    self.assertEqual([(r['round'], r['seed']) for r in rows],
                     [(str(r), s) for r in (4, 8, 12, 12) for s in '01'])
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


@pytest.mark.slow
class KillTest(FolderTest):

  @parameterized.named_parameters(
      ('fedavg', 2, ('--config.rounds=40', '--config.keep_best=True')),
      ('gossip', 1, ('--config.rounds=12', '--config.algorithm=gossip',
                     '--config.gossip.topology=matching', '--config.gossip.schedule=dense@3:4')))
  def test_killed_at_any_moment_resumes_bit_for_bit(self, kills, flags):
    flags = (*flags, '--config.eval_every=1', '--config.seeds=2')
    code, _, _ = command(f'--workdir={self.path("whole")}', *flags)
    self.assertEqual(code, 0)
    rng = random.Random(0)
    for number in [signal.SIGKILL] * kills + [signal.SIGTERM]:
      self.stop_after_some_rows(number, time_left=rng.uniform(0, 0.12), flags=flags)
    # Otherwise nothing was left to interrupt.
    self.assertLess(len(metrics(self.path('killed'))), len(metrics(self.path('whole'))))
    code, _, err = command(f'--workdir={self.path("killed")}', *flags)
    self.assertEqual((code, err), (0, ''))
    self.assertEqual(metrics(self.path('killed')), metrics(self.path('whole')))
    self.assertEqual(clients(self.path('killed')), clients(self.path('whole')))

  def stop_after_some_rows(self, number, *, time_left, flags):
    process = start(f'--workdir={self.path("killed")}', *flags)
    self.assertTrue(self.wait_for_rows(process))
    time.sleep(time_left)  # The writes of a round take about 40 ms.
    process.send_signal(number)
    _, err = process.communicate()
    if number == signal.SIGTERM:
      self.assertEqual(process.returncode, 143)
      self.assertRegex(err, r'\A(hmm_jax: [^\n]*\n){2}\Z')

  def wait_for_rows(self, process):
    """Waits until a started run has written a new metrics.csv."""
    path = self.path('killed', 'metrics.csv')
    stamp = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
    while process.poll() is None:
      if os.path.exists(path) and os.stat(path).st_mtime_ns != stamp:
        return True
      time.sleep(0.002)
    return False


class BadInputTest(FolderTest):

  def test_is_one_line_and_code_2(self):
    code, out, err = command(f'--workdir={self.path("run")}', '--config.dataset=mnistt')
    self.assertEqual((code, out), (2, ''))
    self.assertRegex(err, r'^hmm_jax: got dataset=.mnistt[^\n]*\n$')

  @parameterized.named_parameters(
      ('flag', ('--workdirr=a',)), ('key', ('--config.local.lrr=1',)))
  def test_of_a_flag_ends_with_one_line_and_code_2(self, words):
    with (contextlib.redirect_stderr(io.StringIO()) as err,
          self.assertRaises(SystemExit) as caught):
      main.entry(['main', *words])
    self.assertEqual(caught.exception.code, 2)
    self.assertRegex(err.getvalue(), r'^hmm_jax: [^\n]*\n$')

  @parameterized.named_parameters(
      ('bounds', ('--config.rounds=0',), 'got rounds=0'),
      ('method', ('--config.algorithm=fedavgg',), 'did you mean fedavg'),
      ('word', ('stray',), 'got argument stray'),
      ('data', ('--config.participation=21',), 'got participation=21'),
      ('method_setting', ('--config.algorithm=gossip', '--config.gossip.rate=1.5'),
       'got gossip.rate=1.5'),
      ('variant_key', ("--config.variants=('low local.lrr=0.1',)",), 'got local.lrr in low'),
      ('variant_method', ("--config.variants=('x algorithm=gossip gossip.final_merge=foo',)",),
       'x: got gossip.final_merge=foo'),
      ('variant_data', ("--config.variants=('own algorithm=fedmerge',)",
                        '--config.partition.test=0.0'), 'own: got partition.test=0.0'))
  def test_is_named_before_anything_is_written(self, flags, expected):
    with self.assertRaises(InputError) as caught:
      here(self.path('run'), *flags)
    self.assertIn(expected, str(caught.exception))
    self.assertFalse(os.path.exists(self.path('run')))


if __name__ == '__main__':
  absltest.main()
