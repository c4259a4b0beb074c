"""Merges of runs, initial models and exported folders, whose result can be loaded."""

import contextlib
import io
import os
import pathlib
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest, flagsaver, parameterized
import numpy as np
from reference.configs import tiny

from hmm_jax.experiment import export, exported, launch, locate
from hmm_jax.experiment.saved import Run
from hmm_jax.merge import __main__ as merge
from hmm_jax.models import files
from hmm_jax.types import InputError


class NetworkTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.run_folder = f'{cls.folder}/run'
    with mock.patch.object(launch, 'plots'):
      launch.run_config(tiny(mapper='map', seeds=2, rounds=1), cls.run_folder, silent=True)
    export.export(cls.run_folder, f'{cls.folder}/exported', seed=1)
    files.save(f'{cls.folder}/file.safetensors', locate.tensors(cls.run_folder))

  def merge(self, *models, **given):
    """Merges by the command; returns the folder of the result."""
    out = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'out')
    given = {'models': [os.path.join(self.folder, name) for name in models], 'out': out,
             'method': 'uniform'} | given
    with flagsaver.flagsaver(**given), contextlib.redirect_stdout(io.StringIO()):
      merge.main(['merge'])
    return out

  def test_of_a_run_and_an_exported_folder(self):
    merged = export.load(self.merge('run', 'exported'))
    self.assertEqual((merged.about['method'], merged.about['view']), ('uniform', 'merged'))
    first, second = (locate.tensors(f'{self.run_folder}@{seed}') for seed in (0, 1))
    for name, x in files.flatten(merged.variables).items():
      np.testing.assert_allclose(x, (first[name] + second[name]) / 2, rtol=1e-6)
    x = Run.load(self.run_folder).dataset.x_test[:9]
    self.assertEqual(merged.predict(x).shape, (9, 10))

  def test_a_result_is_merged_again(self):
    once, again = self.merge('exported', 'run'), self.merge('exported', 'exported')
    self.assertIn('model.json', os.listdir(self.merge(once, again)))

  def test_of_a_file_it_is_known_from_the_network_that_evaluates_it(self):
    self.assertNotIn('model.json', os.listdir(self.merge('file.safetensors', 'run')))
    out = self.merge('file.safetensors', 'run', evaluate=self.run_folder)
    x = Run.load(self.run_folder).dataset.x_test[:9]
    np.testing.assert_allclose(
        export.load(out).predict(x), Run.load(self.run_folder).predict(x), atol=1e-6)

  def test_task_vectors_are_formed_with_what_a_run_began_from(self):
    base = f'{self.run_folder}@1/initial'
    out = self.merge('exported', base=base, method='task_arithmetic', set=['scale=0.5'])
    begun, ended = locate.tensors(base), locate.tensors(f'{self.folder}/exported')
    for name, x in locate.tensors(out).items():
      np.testing.assert_allclose(x, begun[name] + 0.5 * (ended[name] - begun[name]), atol=1e-6)
    same = self.merge('exported', base=f'{self.run_folder}/initial/1.safetensors',
                      method='task_arithmetic', set=['scale=0.5'])
    self.assertEqual(*(pathlib.Path(folder, 'merged.safetensors').read_bytes()
                       for folder in (out, same)))

  def test_a_mixture_is_no_single_model(self):
    one = export.load(f'{self.folder}/exported')
    mixed = files.unflatten({name: np.stack([x, x]) for name, x in files.flatten(
        one.variables).items()})
    exported.write(f'{self.folder}/mixed', mixed, exported.described(
        one.about, mixture=np.float32([0.5, 0.5])))
    with self.assertRaisesRegex(InputError, 'mixed, a mixture of 2 models; expected one model'):
      self.merge('mixed', 'run')

  def test_of_two_networks_with_the_same_tensors_nothing_is_said(self):
    one = export.load(f'{self.folder}/exported')
    for changed in ({'compute_dtype': 'bfloat16'}, {'settings': {'hidden': [4], 'more': 1}}):
      other = self.enterContext(tempfile.TemporaryDirectory())
      exported.write(other, one.variables, {**one.about, **changed})
      self.assertIn('model.json', os.listdir(self.merge(other, other)))
      self.assertNotIn('model.json', os.listdir(self.merge('exported', other)))

  def test_a_folder_with_an_exported_model_is_taken(self):
    with self.assertRaisesRegex(InputError, 'where model.json exists; expected a new folder'):
      self.merge('run', out=f'{self.folder}/exported')


if __name__ == '__main__':
  absltest.main()
