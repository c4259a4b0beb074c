"""Whatever fails while a run or a merge writes, nothing that was saved is lost."""

import functools
import os
import pathlib
import resource
import tempfile
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
from hmm_jax.report.screen import Screen
from hmm_jax.types import SaveError

SETTINGS = dict(rounds=4, eval_every=2, evaluate=of_clients, keep_best=True)
FAILURES = SaveError, faults.Killed, OSError


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


@pytest.mark.slow
class RunTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    trained(os.path.join(self.folder, 'whole'))
    self.whole = results(os.path.join(self.folder, 'whole'))

  def resumes(self, path):
    """Trains on in a folder where a run failed; in the end nothing tells it from a whole one."""
    trained(path)
    self.assertEqual(results(path), self.whole)
    self.assertEmpty(leftovers(path))

  @parameterized.parameters(('once', 4), ('full', 3), ('killed', 1))
  def test_a_failure_at_any_change_of_a_file_loses_nothing(self, kind, step):
    n, failed = 1, True
    while failed:
      path = os.path.join(self.folder, str(n))
      with self.subTest(n=n):
        try:
          with faults.failing(n, kind) as fault:
            trained(path)
        except FAILURES as error:
          if not isinstance(error, faults.Killed):
            self.assertIsInstance(error, SaveError)  # One line.
            self.assertEmpty(leftovers(path) if kind == 'full' else [])
        failed = fault.count >= n
        self.resumes(path)
      n += step
    self.assertGreater(n, 30)

  @parameterized.parameters('once', 'full', 'killed')
  def test_so_does_one_in_a_run_that_goes_on(self, kind):
    for n in range(1, 40, 6):
      path = os.path.join(self.folder, str(n))
      trained(path, rounds=2)
      before = Workdir(path).read_metrics()
      with self.subTest(n=n):
        try:
          with faults.failing(n, kind):
            trained(path)
        except FAILURES:
          pass
        self.assertEqual(Workdir(path).read_metrics()[:len(before)], before)
        self.resumes(path)

  def test_a_limit_of_any_size_of_a_file(self):
    self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE,
                    resource.getrlimit(resource.RLIMIT_FSIZE))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 1, 20, 60, 120, 250, 400, 600, 900, 1500, 3000):
      path = os.path.join(self.folder, str(size))
      with self.subTest(size=size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
          with self.assertRaisesRegex(SaveError, 'could not write '):
            trained(path)
            self.fail('all was written')
        except AssertionError:
          self.assertGreater(size, 600)
        finally:
          resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        self.resumes(path)


@pytest.mark.slow
class MergeTest(parameterized.TestCase):

  @parameterized.product(kind=('once', 'full', 'killed'), suffix=('.npz', '.safetensors'))
  def test_a_failure_at_any_change_of_a_file_leaves_the_old_one(self, kind, suffix):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    models = [os.path.join(folder, f'{k}.npz') for k in range(2)]
    for k, path in enumerate(models):
      np.savez(path, w=np.full(2000, float(k), np.float32))
    out = os.path.join(folder, f'merged{suffix}')
    pathlib.Path(out).write_bytes(b'old')
    n, failed = 1, True
    while failed:
      with self.subTest(n=n):
        try:
          with faults.failing(n, kind) as fault:
            merge('uniform', models, out=out)
        except (SaveError, faults.Killed):
          self.assertEqual(pathlib.Path(out).read_bytes(), b'old')
          if kind != 'killed':
            self.assertCountEqual(os.listdir(folder), ['0.npz', '1.npz', f'merged{suffix}'])
        failed = fault.count >= n
      n += 1
    self.assertGreater(n, 3)
    self.assertNotEqual(pathlib.Path(out).read_bytes(), b'old')


if __name__ == '__main__':
  absltest.main()
