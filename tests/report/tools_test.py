"""W&B, MLflow and Trackio, offline, get each row of a killed and resumed run once.

Each test is of a tool that is installed: pip install -e '.[wandb,mlflow,trackio]'.
"""

import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import pytest

import hmm_jax

ROOT = pathlib.Path(hmm_jax.__file__).parent.parent
# Tells a tracker some rows, and is then killed, or ends as a run does.
PROGRAM = """
import os, signal, sys, time
from hmm_jax.report import trackers
from hmm_jax.report.trackers.background import Background
tool, before, up_to, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
row = lambda number, seed: {
    'round': number, 'seed': seed, 'seconds': 0.5 * number, 'bytes_up': 10 * number,
    'train/loss': float('nan') if number == 2 else 1 / number}
rows = [row(number, seed) for number in (1, 2, 3, 4) for seed in (0, 1)]
rows += [row(4, seed) | {'seconds': 9.0} for seed in (0, 1)]  # After a final merge.
config = {'local.lr': 0.1, 'mlp.hidden': (4, 4)} | {f'k{i}': i for i in range(150)}
os.makedirs('run', exist_ok=True)
tracker = Background(tool, trackers.opener(tool), trackers.Tracked('a1b2', 'mine', config, 'run'))
tracker.write(rows[:before])
tracker.write(rows[before:up_to])
if end == 'killed':
  while tracker.sent < up_to:
    time.sleep(0.1)
  time.sleep(3)  # Tools write a little later.
  os.kill(os.getpid(), signal.SIGKILL)
assert tracker.close(patience=120)
print(*tracker.places)
"""
SECONDS = [0.5, 1.0, 1.5, 2.0, 9.0]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # Of the tools.
class ToolsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(contextlib.chdir(self.folder))

  def tell(self, *words, **environment):
    """Runs the program; returns what it printed."""
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', PROGRAM, *map(str, words)], text=True, check=False,
        capture_output=True, cwd=self.folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT), **environment})
    self.assertEqual(result.returncode, -9 if 'killed' in words else 0, result.stderr)
    return result.stdout

  def tell_in_parts(self, tool, **environment):
    """Begins, is killed, goes on from before the kill, ends, and tells all once more."""
    self.tell(tool, 0, 6, 'killed', **environment)
    self.tell(tool, 4, 10, 'ends', **environment)
    return self.tell(tool, 10, 10, 'ends', **environment)

  def test_wandb(self):
    pytest.importorskip('wandb')
    said = self.tell_in_parts('wandb', WANDB_MODE='offline')
    self.assertRegex(said, r'\Awandb sync run/wandb/offline-run-\*-a1b2-\*\n\Z')
    files = sorted(pathlib.Path(self.folder, 'run', 'wandb').glob('offline-run-*/*.wandb'))
    self.assertLen(files, 2)  # One for each seed: that which was written last.
    for path in files:
      points = history(path.read_bytes())
      self.assertEqual([point['seconds'] for point in points], SECONDS)
      self.assertEqual([point['round'] for point in points], [1, 2, 3, 4, 4])
      self.assertTrue(math.isnan(points[1]['train/loss']))

  def test_mlflow_in_a_file(self):
    mlflow = pytest.importorskip('mlflow')
    store = f'sqlite:///{self.folder}/mlflow.db'
    said = self.tell_in_parts('mlflow')
    self.assertIn(f'mlflow ui --backend-store-uri={store}', said)
    self.check_mlflow(mlflow.MlflowClient(store))

  def test_mlflow_in_a_folder(self):
    mlflow = pytest.importorskip('mlflow')
    store = {'MLFLOW_TRACKING_URI': f'file:{self.folder}/mlruns', 'MLFLOW_ALLOW_FILE_STORE': 'true'}
    self.tell_in_parts('mlflow', **store)
    self.enterContext(mock.patch.dict(os.environ, store))
    self.check_mlflow(mlflow.MlflowClient(store['MLFLOW_TRACKING_URI']))

  def check_mlflow(self, client):
    experiment = client.get_experiment_by_name('hmm_jax')
    runs = client.search_runs([experiment.experiment_id])
    self.assertEqual(sorted(run.info.run_name for run in runs), ['mine seed 0', 'mine seed 1'])
    for run in runs:
      points = client.get_metric_history(run.info.run_id, 'seconds')
      self.assertEqual(sorted((p.step, p.value) for p in points),
                       sorted(zip((1, 2, 3, 4, 4), SECONDS)))
      self.assertEqual(run.data.params['local.lr'], '0.1')
      self.assertLen(run.data.params, 152)
      self.assertEqual((run.data.tags['group'], run.info.status), ('mine', 'FINISHED'))

  def test_trackio(self):
    pytest.importorskip('trackio')
    said = self.tell_in_parts('trackio', TRACKIO_DIR=self.folder)
    self.assertEqual(said, 'trackio show --project=hmm_jax\n')
    program = ('import json, sys; from trackio.sqlite_storage import SQLiteStorage as s; '
               'json.dump({r["name"]: s.get_logs("hmm_jax", r["name"], run_id=r["id"]) '
               'for r in s.get_run_records("hmm_jax")}, sys.stdout)')
    found = json.loads(subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program], text=True, check=True,
        capture_output=True, env={**os.environ, 'TRACKIO_DIR': self.folder}).stdout)
    self.assertLen(found, 2)
    for name, points in found.items():
      self.assertStartsWith(name, 'mine seed ')
      self.assertEqual([(p['step'], p['seconds']) for p in points],
                       list(zip((1, 2, 3, 4, 4), SECONDS)))


def history(content: bytes) -> list[dict]:
  """Reads the points of a .wandb file, which is a LevelDB log of records."""
  from wandb.proto.wandb_internal_pb2 import Record
  block, position, parts, points = 32768, 7, [], []
  while position + 7 <= len(content):
    if block - position % block < 7:  # No room for a header, so zeros follow.
      position += block - position % block
      continue
    size, kind = int.from_bytes(content[position + 4:position + 6], 'little'), content[position + 6]
    parts.append(content[position + 7:position + 7 + size])
    position += 7 + size
    if kind in (1, 4):  # Whole, or the last part.
      record, parts = Record.FromString(b''.join(parts)), []
      if record.HasField('history'):
        points.append({item.key or '/'.join(item.nested_key): json.loads(item.value_json)
                       for item in record.history.item})
  return points


if __name__ == '__main__':
  absltest.main()
