"""A run in its folder: its config, metrics and models, and what these predict."""

import os
import tempfile

from absl.testing import absltest, parameterized
import numpy as np
from reference.configs import experiment, tiny

from hmm_jax.experiment.run import run
from hmm_jax.experiment.saved import Run
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

METHODS = {
    'fedavg': {'seed': 3, 'seeds': 2, 'keep_best': True},  # a global model
    'local': {},  # a model for each client
    'fedem': {'fedem.models': 2},  # a mixture of models for each client
}


def log_loss(probabilities, y):
  return -np.log(probabilities[np.arange(len(y)), y]).mean()


class RunTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    for name, changes in METHODS.items():
      config = tiny(algorithm=name, mapper='map', **{'partition.test': 0.2, **changes})
      run(experiment(config), config.to_dict(), Workdir(f'{cls.folder}/{name}'),
          Screen(silent=True))

  def load(self, name):
    return Run.load(f'{self.folder}/{name}')

  def test_has_what_the_folder_has(self):
    made = self.load('fedavg')
    self.assertEqual((made.config.algorithm, made.config.keep_best, made.seeds),
                     ('fedavg', True, [3, 4]))
    self.assertEqual([(row['round'], row['seed']) for row in made.metrics],
                     [(1, 3), (1, 4), (2, 3), (2, 4)])
    self.assertEqual((made.summary['seeds'], made.rounds), ([3, 4], 2))
    self.assertEqual(made.states.round.tolist(), [2, 2])
    self.assertEqual((len(made.federation.clients.id), made.dataset.name), (6, 'synthetic'))
    self.assertIs(made.experiment, made.experiment)  # Made once.

  def test_a_global_model_predicts_what_the_run_has_measured(self):
    made = self.load('fedavg')
    rows = made.federation.test.rows
    x, y = made.federation.examples.x[rows], made.federation.examples.y[rows]
    models = [made.models(seed)['global']['params']['head']['kernel'] for seed in (None, 3, 4)]
    np.testing.assert_array_equal(models[0], models[1])
    self.assertFalse(np.array_equal(models[1], models[2]))
    for row in made.metrics[-2:]:
      got = np.asarray(made.predict(x, seed=row['seed']))
      np.testing.assert_allclose(got.sum(axis=1), np.ones(len(y)), rtol=1e-5)
      self.assertAlmostEqual((got.argmax(axis=1) == y).mean(), row['global/test/accuracy'], 5)
      self.assertAlmostEqual(log_loss(got, y), row['global/test/loss'], 4)

  @parameterized.parameters('local', 'fedem')
  def test_a_clients_own_model_predicts_what_the_run_has_measured(self, name):
    made = self.load(name)
    measured = {row['client']: row for row in made.folder.read_table('clients')[-6:]}
    clients, losses = made.federation.test.clients, []
    for k in (0, 5):
      rows = clients.index[k, :clients.size[k]]
      y = made.federation.examples.y[rows]
      got = np.asarray(made.predict(made.federation.examples.x[rows], view='clients', client=k))
      row = measured[int(clients.id[k])]
      self.assertAlmostEqual((got.argmax(axis=1) == y).mean(), row['test/accuracy'], 5)
      self.assertAlmostEqual(log_loss(got, y), row['test/loss'], 4)
      losses.append(row['test/loss'])
    self.assertNotEqual(*losses)

  @parameterized.named_parameters(
      ('view', {'view': 'global'}, 'got view=global; expected one of clients'),
      ('no_client', {'view': 'clients'}, 'got view=clients without a client'),
      ('client', {'view': 'clients', 'client': 6}, 'got client=6; expected from 0 to 5'),
      ('negative', {'view': 'clients', 'client': -1}, 'got client=-1; expected from 0 to 5'),
      ('seed', {'seed': 4}, '@4; expected one of its seeds 0'))
  def test_what_it_does_not_have_is_named(self, asked, expected):
    for name in ('local', 'fedem'):
      made = self.load(name)
      with self.assertRaisesRegex(InputError, expected):
        made.predict(made.dataset.x_test[:1], **asked)

  def test_a_folder_of_no_run_is_named(self):
    for folder in (self.folder, f'{self.folder}/nowhere'):
      with self.assertRaisesRegex(InputError, f'got {folder}; expected the folder of a run'):
        Run.load(folder)
    self.assertFalse(os.path.exists(f'{self.folder}/nowhere'))

  def test_without_a_checkpoint_there_is_no_model(self):
    folder = Workdir(f'{self.folder}/bare')
    folder.make()
    folder.write_json('config.json', tiny().to_dict())
    made = Run.load(folder.path)
    self.assertEqual((made.metrics, made.summary), ([], None))
    with self.assertRaisesRegex(InputError, f'got {folder.path} without a checkpoint'):
      made.models()
    self.assertEqual(os.listdir(folder.path), ['config.json'])


if __name__ == '__main__':
  absltest.main()
