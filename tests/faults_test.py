"""Whatever fails while a run or a merge writes, nothing that was saved is lost."""

import functools
import multiprocessing
import os
import pathlib
import resource
import sys
import tempfile
import traceback
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
import pytest
from reference import faults
from reference.counting import adding, counting, experiment, of_clients

from hmm_jax.experiment import run as run_module
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.merge.models import merge
from hmm_jax.models import files
from hmm_jax.report.screen import Screen
from hmm_jax.types import SaveError

SETTINGS = dict(rounds=4, eval_every=2, evaluate=of_clients, keep_best=True)


@functools.cache
def compiled(rounds):
  """Makes the experiment and the trainer of all runs, so that each takes a moment."""
  algorithm = counting(finish=adding(100) if rounds == 4 else None)
  made = experiment(algorithm, **{**SETTINGS, 'rounds': rounds})
  return made, Trainer(made)


def trained(path, rounds=4):
  made, trainer = compiled(rounds)
  with Workdir(path).owned(), mock.patch.object(run_module, 'Trainer', return_value=trainer):
    run_module.run(made, {'rounds': rounds}, Workdir(path), Screen(silent=True))


def results(path):
  """Returns the tables of a run, without its seconds, and the rounds of its checkpoints."""
  workdir = Workdir(path)
  rows = [{**row, 'seconds': 0} for row in workdir.read_metrics()]
  return rows, workdir.read_table('clients'), sorted(os.listdir(workdir.file('checkpoints')))


def leftovers(path):
  return [file for file in pathlib.Path(path).rglob('*') if file.name.startswith('.new-')]


def check_all_changes(folder, kind, step, before):
  """Fails the n-th change of a file of a run, for all n; in the end nothing tells it from a whole.

  Args:
    folder: for the runs.
    kind: of fault.
    step: between two n.
    before: rounds trained before the failure.
  """
  whole, n, failed = os.path.join(folder, 'whole'), 1, True
  trained(whole)
  while failed:
    path = os.path.join(folder, str(n))
    if before:
      trained(path, rounds=before)
    rows = Workdir(path).read_metrics()
    try:
      with faults.failing(n, kind) as fault:
        trained(path)
    except (SaveError, faults.Killed):  # Of which one line is said.
      assert kind != 'full' or not leftovers(path), (kind, n, leftovers(path))
    assert Workdir(path).read_metrics()[:len(rows)] == rows, (kind, n)
    failed = fault.count >= n
    trained(path)
    assert results(path) == results(whole), (kind, n, results(path))
    assert not leftovers(path), (kind, n, leftovers(path))
    n += step
  assert n > 30, n


def check_limits(folder):
  """Trains with a limit to the size of a file, and then without."""
  whole, (_, hard) = os.path.join(folder, 'whole'), resource.getrlimit(resource.RLIMIT_FSIZE)
  trained(whole)
  for size in (0, 1, 20, 60, 120, 250, 400, 600, 900, 1500, 3000):
    path, saved = os.path.join(folder, str(size)), True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
      trained(path)
    except SaveError:
      saved = False
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not saved or size > 600, size
    trained(path)
    assert results(path) == results(whole), size


def ending(check, *arguments):
  """Runs a check and ends the process: threads of Orbax may wait minutes for what has failed."""
  try:
    check(*arguments)
  except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)
  os._exit(0)


@pytest.mark.slow
class RunTest(parameterized.TestCase):

  def in_a_process(self, check, *arguments):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    process = multiprocessing.get_context('spawn').Process(
        target=ending, args=(check, folder, *arguments))
    process.start()
    process.join()
    self.assertEqual(process.exitcode, 0)

  @parameterized.parameters(('once', 4), ('full', 3), ('killed', 1))
  def test_a_failure_at_any_change_of_a_file_loses_nothing(self, kind, step):
    self.in_a_process(check_all_changes, kind, step, 0)

  @parameterized.parameters('once', 'full', 'killed')
  def test_so_does_one_in_a_run_that_goes_on(self, kind):
    self.in_a_process(check_all_changes, kind, 5, 2)

  def test_a_limit_of_any_size_of_a_file(self):
    self.in_a_process(check_limits)


@pytest.mark.slow
class MergeTest(parameterized.TestCase):

  @parameterized.product(kind=('once', 'full', 'killed'), suffix=('.npz', '.safetensors'))
  def test_a_failure_at_any_change_of_a_file_leaves_the_old_one(self, kind, suffix):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    models = [os.path.join(folder, f'{k}.npz') for k in range(2)]
    for k, path in enumerate(models):
      np.savez(path, w=np.full(2000, float(k), np.float32))
    out = os.path.join(folder, f'merged{suffix}')
    merge('uniform', models)  # Compiles, which may write to a cache.
    n, failed = 1, True
    while failed:
      pathlib.Path(out).write_bytes(b'old')
      with self.subTest(n=n):
        try:
          with faults.failing(n, kind) as fault:
            merge('uniform', models, out=out)
        except (SaveError, faults.Killed):
          if kind != 'killed':
            self.assertCountEqual(os.listdir(folder), ['0.npz', '1.npz', f'merged{suffix}'])
          if pathlib.Path(out).read_bytes() != b'old':
            self.check(out)
        failed = fault.count >= n
      n += 1
    self.assertGreater(n, 3)
    self.check(out)

  def check(self, path):
    """Checks that a merged model is whole."""
    with files.opened(path) as file:
      np.testing.assert_array_equal(file.read('w'), np.full(2000, 0.5))


if __name__ == '__main__':
  absltest.main()
