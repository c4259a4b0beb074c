"""Every key has a default, a type and, where it is a name or a number, a check."""

from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from hmm_jax.experiment import config as defaults
from hmm_jax.types import InputError


def changed(**values):
  config = defaults.get_config()
  config.update_from_flattened_dict(values)
  return config


class ConfigTest(parameterized.TestCase):

  def test_the_defaults_pass(self):
    defaults.check(defaults.get_config())

  def test_the_tables_speak_of_existing_keys(self):
    keys = defaults.flat(defaults.get_config())
    for table in (defaults.CHOICES, defaults.AT_LEAST_ONE, defaults.NOT_NEGATIVE,
                  defaults.POSITIVE):
      self.assertEqual(set(table) - set(keys), set())

  @parameterized.parameters(
      ('algorithm', 'fedavgg', 'did you mean fedavg'),
      ('partition.kind', 'dirichet', 'did you mean dirichlet'),
      ('mapper', 'pmap', 'expected one of auto, map, vmap, sharded'),
      ('local.optimizer', 'SGD', 'expected one of sgd, adamw'),
      ('rounds', 0, 'at least 1'),
      ('local.batch', -5, 'at least 1'),
      ('seeds', 0, 'at least 1'),
      ('participation', -1, '0 or more'),
      ('local.momentum', -0.1, '0 or more'),
      ('local.lr', float('nan'), 'finite'),
      ('local.lr', float('inf'), 'finite'),
      ('local.lr', 0.0, 'above 0'),
      ('partition.alpha', 0.0, 'above 0'),
      ('partition.alpha', -1.0, 'above 0'),
      ('partition.clusters', 0, 'at least 1'),
      ('partition.classes_per_cluster', 0, 'at least 1'),
      ('partition.cluster_alpha', 0.0, 'above 0'),
      ('partition.test_rows', 'pool', 'did you mean pooled'),
      ('model', 'lstn', 'did you mean lstm'),
      ('lstm.embedding', 0, 'at least 1'),
      ('text.window', 0, 'at least 1'),
      ('crisismmd.ngrams', 0, 'at least 1'),
      ('crisismmd.image_size', 0, 'at least 1'),
      ('crisismmd.task', 'humanitarain', 'did you mean humanitarian'),
      ('crisismmd.labels', 'agree', 'did you mean agreed'),
      ('crisismmd.modalities', 'images', 'did you mean image'),
      ('crisismmd.broken', 'keep', 'expected one of refuse, skip'),
      ('fusion.embedding', 0, 'at least 1'),
      ('fusion.hidden', 0, 'at least 1'),
      ('text.min_rows', 0, 'at least 1'),
      ('local.clip_value', -1.0, '0 or more'),
      ('local.label_smoothing', -0.1, '0 or more'),
      ('gossip.start', 'diferent', 'did you mean different'),
      ('gossip.statistics', 'keep', 'expected one of mixed, kept'),
      ('gossip.merged_statistics', 'none', 'expected one of recalibrated, averaged'),
      ('gossip.merge_data', 'test', 'expected one of train, validation'),
      ('gossip.merge_batches', 0, 'at least 1'),
      ('gossip.degree', 0, 'at least 1'),
      ('gossip.edge_probability', 0.0, 'above 0'),
      ('gossip.weights', 'metropolic', 'did you mean metropolis'),
      ('seed', 2**31, 'expected seeds below'),
      ('gossip.rate', float('nan'), 'finite'),
      ('server.size', -2, 'expected a number of rows, or -1 to leave it to the algorithm'),
      ('server.held_out', 1.1, 'a number from 0 to 1'),
      ('server.noise', -0.1, 'a number from 0 to 1'),
      ('server.seed', -1, '0 or more'),
      ('corrupt.clients', 1.1, 'a number from 0 to 1'),
      ('corrupt.clients', -0.1, 'a number from 0 to 1'),
      ('corrupt.rate', -0.1, '0 or more'),
  )
  def test_a_bad_value_is_named_with_what_was_expected(self, key, value, expected):
    with self.assertRaisesRegex(InputError, f'got {key}={value}.*{expected}'):
      defaults.check(changed(**{key: value}))

  @parameterized.parameters(
      ('server.size', -1), ('server.size', 0), ('server.held_out', 1.0), ('server.noise', 0.0),
      ('corrupt.clients', 1.0), ('corrupt.rate', 2.0))
  def test_a_value_at_its_bound_passes(self, key, value):
    defaults.check(changed(**{key: value}))

  def test_a_config_file_may_name_only_some_keys(self):
    full = defaults.complete(ConfigDict({'rounds': 7, 'local': {'lr': 0.2}}))
    self.assertEqual((full.rounds, full.local.lr, full.local.batch), (7, 0.2, 20))

  def test_changes_make_a_copy(self):
    config = changed(rounds=7)
    other = defaults.updated(config, {'local.lr': 1, 'mlp.hidden': (3, 4)}, 'the test')
    self.assertEqual((other.rounds, other.local.lr, other.mlp.hidden), (7, 1.0, (3, 4)))
    self.assertIsInstance(other.local.lr, float)
    self.assertEqual((config.local.lr, config.mlp.hidden), (0.05, (128,)))

  @parameterized.parameters(
      ('gossip.rat', 0.1, 'got gossip.rat in the test; .*did you mean gossip.rate'),
      ('gossip', 3, 'got gossip in the test; expected a key'),
      ('rounds', 2.5, 'got rounds=2.5; expected a value like 100'),
      ('local.lr', 'high', "got local.lr='high'; expected a value like 0.05"),
      ('mlp.hidden', 'wide', "got mlp.hidden='wide'; expected a value like "),
      ('name', 3, "got name=3; expected a value like ''"))
  def test_a_change_that_does_not_fit_is_refused(self, key, value, expected):
    with self.assertRaisesRegex(InputError, expected):
      defaults.updated(defaults.get_config(), {key: value}, 'the test')

  def test_a_config_file_with_an_unknown_key_is_refused(self):
    with self.assertRaisesRegex(InputError, 'got local.lrr.*did you mean local.lr'):
      defaults.complete(ConfigDict({'local': {'lrr': 0.2}}))

  def test_a_config_file_with_another_type_is_refused(self):
    with self.assertRaisesRegex(InputError, "got rounds='7'"):
      defaults.complete(ConfigDict({'rounds': '7'}))


if __name__ == '__main__':
  absltest.main()
