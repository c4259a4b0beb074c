"""Whoever reads a run gets whole results and changes nothing, while it trains and afterwards."""

from collections.abc import Callable
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest
import numpy as np
import pytest
from reference import fuzzing

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import pages, recorded
from hmm_jax.experiment.export import export
from hmm_jax.experiment.launch import train
from hmm_jax.experiment.saved import Run
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.merge.models import merge
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

ROOT = pathlib.Path(__file__).parents[1]
READS = 30 * fuzzing.TIMES  # in all
SHAPE = (4, 4, 1)
SETTINGS = {
    'dataset': 'synthetic', 'synthetic.rows': 60, 'synthetic.shape': SHAPE, 'clients': 3,
    'participation': 0, 'partition.kind': 'iid', 'mlp.hidden': (), 'local.epochs': 1, 'seeds': 2,
    'rounds': 10**6, 'plots': False, 'eval_every': 1, 'keep': 1, 'mapper': 'map'}


def predict(folder: str):
  probabilities = Run.load(folder).predict(np.zeros((5, *SHAPE), np.float32), seed=1)
  assert np.allclose(probabilities.sum(axis=1), 1)


def merge_seeds(folder: str):
  merged = merge('uniform', [folder, f'{folder}@1'])
  assert all(np.isfinite(x).all() for x in merged.values())


def tables(folder: str):
  run = Run.load(folder)
  rounds = [row['round'] for row in run.metrics]
  assert rounds == sorted(rounds)
  assert rounds[-2:] == [rounds[-1]] * len(run.seeds)
  assert {row['client'] for row in run.folder.read_table('clients')} == {0, 1, 2}


def take_home(folder: str):
  with tempfile.TemporaryDirectory() as out:
    about, = export(folder, os.path.join(out, 'model'), seed=1).values()
  assert about['round'] >= 1


def compare(folder: str):
  entry, = recorded.entries([folder], print)
  assert len(entry.seeds) == 2


def tell(folder: str):
  told, = pages.tell([Workdir(folder)])
  assert told.metrics


# What reads a run; each is called with its folder.
READERS: dict[str, Callable[[str], None]] = {
    'predict': predict, 'merge': merge_seeds, 'tables': tables, 'export': take_home,
    'compare': compare, 'report': tell}


def content(folder: str) -> dict[str, tuple[int, bytes]]:
  """Returns the content of all files and when they were written."""
  return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b'')
          for path in pathlib.Path(folder).rglob('*')}


@pytest.mark.slow
class ReadersTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run')
    self.process = self.enterContext(subprocess.Popen(
        [sys.executable, '-m', 'hmm_jax.main', f'--workdir={self.folder}',
         *(f'--config.{key}={value}' for key, value in SETTINGS.items())],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    self.addCleanup(self.process.kill)
    while self.round() < 2:
      self.assertIsNone(self.process.poll())
      time.sleep(0.1)

  def round(self) -> int:
    rows = Workdir(self.folder).read_metrics()
    return rows[-1]['round'] if rows else 0

  def test_a_run_trains_on_while_all_read_it(self):
    seen = [self.round()]
    with self.assertNoLogs('asyncio'):  # Its errors would be pages on stderr.
      for read in range(READS):
        name = [*READERS][read % len(READERS)]
        with self.subTest(name, read=read):
          READERS[name](self.folder)
        seen.append(self.round())
    with self.assertRaisesRegex(InputError, 'in which another process is training'):
      train(configs.configure(SETTINGS), Workdir(self.folder), Screen(silent=True))
    self.assertGreater(len({*seen}), READS / 2)  # It has not been read while it stood still.
    self.assertIsNone(self.process.poll())
    self.process.send_signal(signal.SIGTERM)
    _, said = self.process.communicate()
    self.assertEqual(self.process.returncode, 128 + signal.SIGTERM, said)
    before = content(self.folder)
    for name, reader in READERS.items():
      with self.subTest(name, after='the end'):
        reader(self.folder)
        self.assertEqual(content(self.folder), before)


if __name__ == '__main__':
  absltest.main()
