"""Every key has a default, a type and, where it is a name or a number, a check."""

from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from hmm_jax import config as defaults
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
  )
  def test_a_bad_value_is_named_with_what_was_expected(self, key, value, expected):
    with self.assertRaisesRegex(InputError, f'got {key}={value}.*{expected}'):
      defaults.check(changed(**{key: value}))

  def test_a_config_file_may_name_only_some_keys(self):
    full = defaults.complete(ConfigDict({'rounds': 7, 'local': {'lr': 0.2}}))
    self.assertEqual((full.rounds, full.local.lr, full.local.batch), (7, 0.2, 20))

  def test_a_config_file_with_an_unknown_key_is_refused(self):
    with self.assertRaisesRegex(InputError, 'got local.lrr.*did you mean local.lr'):
      defaults.complete(ConfigDict({'local': {'lrr': 0.2}}))

  def test_a_config_file_with_another_type_is_refused(self):
    with self.assertRaisesRegex(InputError, "got rounds='7'"):
      defaults.complete(ConfigDict({'rounds': '7'}))


if __name__ == '__main__':
  absltest.main()
