"""Which commas make a grid, and what its points are called."""

import os
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import grid
from hmm_jax.types import InputError

METHOD = '''
from hmm_jax.algorithms import METHODS
from hmm_jax.registry import Setting
METHOD = METHODS['fedavg']._replace(name='mine', settings={'rate': Setting(0.5, 'a rate')})
'''


def points(**texts):
  texts = {key.replace('__', '.'): text for key, text in texts.items()}
  return grid.points(configs.get_config(), texts)


class PointsTest(parameterized.TestCase):

  def test_every_combination_is_a_point_named_by_what_differs(self):
    made = points(rounds='7', algorithm='fedavg,scaffold', local__lr='0.10, 1e-2')
    self.assertEqual([point.name for point in made], [
        'fedavg,local.lr=0.1', 'fedavg,local.lr=0.01', 'scaffold,local.lr=0.1',
        'scaffold,local.lr=0.01'])
    self.assertEqual([(p.config.algorithm, p.config.local.lr, p.config.rounds) for p in made],
                     [(a, lr, 7) for a in ('fedavg', 'scaffold') for lr in (0.1, 0.01)])
    self.assertEqual(made[1].texts,
                     {'rounds': '7', 'algorithm': 'fedavg', 'local.lr': '1e-2'})

  @parameterized.parameters(
      ('keep_best', 'true,false', ['keep_best=True', 'keep_best=False']),
      ('selection', 'loss,accuracy', ['selection=loss', 'selection=accuracy']),
      ('model', 'mlp,cnn', ['model=mlp', 'model=cnn']),
      ('partition__kind', 'iid,dirichlet', ['partition.kind=iid', 'partition.kind=dirichlet']),
      ('mlp__hidden', '(64,),(32,16),()', ['mlp.hidden=64', 'mlp.hidden=32-16',
                                           'mlp.hidden=none']))
  def test_numbers_choices_records_and_bracketed_tuples_have_several(self, key, text, names):
    self.assertEqual([point.name for point in points(**{key: text})], names)

  @parameterized.parameters(
      ('mlp__hidden', '64,32'), ('mlp__hidden', '((64),)'), ('references', 'iid,local'),
      ('name', 'a,b'), ('data_dir', 'a,b'), ('gossip__schedule', 'dense@1:2,dense@3:4'),
      ('variants', "('a seed=1','b seed=2')"))
  def test_tuples_and_free_texts_are_one_value(self, key, text):
    point, = points(**{key: text})
    self.assertEqual((point.name, point.texts), ('', {key.replace('__', '.'): text}))

  @parameterized.parameters('keep', 'resume', 'track')
  def test_what_changes_no_number_has_one_value(self, key):
    with self.assertRaisesRegex(InputError, f'got {key}=|expected one of'):
      configs.check(points(**{key: '1,2'})[0].config)

  def test_a_path_with_a_comma_is_one_value(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = os.path.join(folder, 'a,b.npz')
    pathlib.Path(path).touch()
    point, = points(dataset=f'npz:{path}')
    self.assertEqual(point.config.dataset, f'npz:{path}')

  @parameterized.parameters(
      (dict(local__lr='0.1,x'), 'got local.lr=x'), (dict(local__lrr='1,2'), 'got local.lrr'),
      (dict(local__lr='0.1,'), 'got local.lr=;'),
      (dict(local__lr='0.1,0.10'), 'got local.lr=0.1 twice'),
      (dict(algorithm='fedavg,fedavgg'), 'got algorithm=fedavgg'))
  def test_bad_values_are_named(self, texts, expected):
    with self.assertRaisesRegex(InputError, expected):
      points(**texts)

  def test_settings_of_ones_own_method_are_for_its_points(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = os.path.join(folder, 'mine.py')
    pathlib.Path(path).write_text(METHOD)
    made = points(algorithm=f'fedavg,{path}:METHOD', mine__rate='0.1,0.2', seeds='1')
    self.assertEqual([point.name for point in made],
                     ['fedavg', 'mine,mine.rate=0.1', 'mine,mine.rate=0.2'])

  @parameterized.parameters(
      (dict(algorithm='fedavg,local'), 'runs/algorithm-digits'),
      (dict(algorithm='fedavg,local', local__lr='1,2', name='x'), 'runs/x-digits'),
      (dict(dataset='digits,synthetic', seed='1,2'), 'runs/dataset,seed'))
  def test_lives_in_a_folder_named_by_its_keys(self, texts, expected):
    self.assertEqual(grid.workdir(points(**texts)), expected)


if __name__ == '__main__':
  absltest.main()
