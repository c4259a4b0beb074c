"""Networks of one's own from the command line: trained, resumed, exported and merged."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from reference import newcomers

SMALL = ('--config.clients=4', '--config.participation=0', '--config.local.epochs=1',
         '--config.local.optimizer=adam', '--config.local.lr=0.003', '--config.plots=False',
         '--config.partition.alpha=1.0')


def call(module: str, *words: str, code: int = 0) -> str:
  """Runs a module of the command line; returns what it prints."""
  done = subprocess.run([sys.executable, '-m', f'hmm_jax.{module}', *words], check=False,
                        capture_output=True, text=True)
  assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
  return done.stdout + done.stderr


def hmm(*words: str) -> str:
  """Calls `hmm_jax`."""
  done = subprocess.run([sys.executable, '-c', 'from hmm_jax.main.app import entry; entry()',
                         *words], check=False, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  return done.stdout


def accuracy(run: pathlib.Path, view: str) -> float:
  summary = json.loads((run / 'summary.json').read_text())
  return summary['last'][f'{view}/test/accuracy']['mean']


@pytest.mark.slow
@pytest.mark.parametrize('net', ['Vit', 'NnxVit'])
def test_a_newcomers_vit(net, tmp_path):
  path = tmp_path / 'mine.py'
  shutil.copy(newcomers.__file__, path)
  own = (f'--config.model={path}:{net}', f'--config.{net}.patch=2', f'--config.{net}.depth=1')
  run, personal = tmp_path / 'run', tmp_path / 'personal'
  call('main', *own, *SMALL, '--config.rounds=6', '--config.seeds=2', '--config.eval_every=6',
       f'--workdir={run}')
  # More rounds: the run's folder knows the network.
  call('main', *own, *SMALL, '--config.rounds=12', '--config.seeds=2', '--config.eval_every=6',
       f'--workdir={run}')
  assert accuracy(run, 'global') > 0.5
  call('main', *own, *SMALL, '--config.rounds=16', '--config.seeds=1', '--config.eval_every=16',
       '--config.algorithm=fedmerge', '--config.partition.alpha=0.3', f'--workdir={personal}')
  assert accuracy(personal, 'clients') > 0.4
  hmm('export', str(personal), '--clients', f'--out={tmp_path / "clients"}')
  clients = sorted(map(str, (tmp_path / 'clients').iterdir()))
  merged = call('merge', '--method=ties', f'--models={",".join(clients[:2])}',
                f'--base={personal}@0/initial', f'--evaluate={personal}', f'--out={tmp_path}/ties')
  assert 'accuracy' in merged
  matched = call('merge', '--method=weight_matching', f'--models={run}@0,{run}@1',
                 f'--evaluate={run}', f'--out={tmp_path}/matched')
  assert 'barrier' in matched
  np.save(tmp_path / 'x.npy', np.zeros((2, 8, 8, 1), np.uint8))
  hmm('predict', str(tmp_path / 'matched'), f'--inputs={tmp_path / "x.npy"}',
      f'--out={tmp_path / "predicted.csv"}')
  assert len((tmp_path / 'predicted.csv').read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize('net', ['Mlp', 'NnxMlp'])
@pytest.mark.parametrize('method', ['dmm', 'fedbn'])
def test_batch_norm_of_a_newcomer(net, method, tmp_path):
  call('main', f'--config.model={newcomers.__file__}:{net}', *SMALL, '--config.rounds=4',
       '--config.seeds=1', '--config.eval_every=4', f'--config.algorithm={method}',
       '--config.inversion.steps=20', '--config.dmm.steps=20', '--config.dmm.batches=2',
       f'--workdir={tmp_path / "run"}')
  assert accuracy(tmp_path / 'run', 'clients') > 0.4


@pytest.mark.slow
def test_what_does_not_fit_is_one_line_and_nothing_is_written(tmp_path):
  told = call('main', f'--config.model={newcomers.__file__}:made', *SMALL,
              f'--workdir={tmp_path / "run"}', code=2)
  assert told.strip().splitlines()[-1].startswith('hmm_jax: got model=')
  assert not (tmp_path / 'run').exists()
