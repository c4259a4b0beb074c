"""Every setting has a default, a type, bounds or choices, and a meaning in one line."""

import math
import os
import pathlib
import re
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
from ml_collections import ConfigDict, config_dict

from hmm_jax.experiment import config as configs
from hmm_jax.types import InputError

SETTINGS = configs.settings(configs.get_config())
# Named by what a value may be, not by a table of choices.
NAMES = {
    'algorithm': configs.METHODS, 'model': configs.NETWORKS,
    'partition.kind': configs.PARTITIONERS}


def out_of_bounds(setting):
  """Returns numbers on the wrong side of each bound."""
  kind = type(setting.default)
  step = 1 if kind is int else 1e-3
  bounds = {'above': 0, 'at_least': -step, 'below': 0, 'at_most': step}
  values = [kind(getattr(setting, name) + off) for name, off in bounds.items()
            if getattr(setting, name) is not None]
  return values + ([math.nan, math.inf, -math.inf] if kind is float else [])


def changed(key, value):
  """Returns the defaults with one value that nobody has checked."""
  config = configs.get_config()
  config.update_from_flattened_dict({key: value})
  return config


class EverySettingTest(absltest.TestCase):

  def refused(self, key, value, change=None):
    """Returns what is said of a value, in whatever function meets it first."""
    with self.assertRaises(InputError, msg=f'{key}={value!r}') as caught:
      configs.check((change or changed)(key, value))
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    self.assertRegex(message, rf'\bgot {re.escape(key)}={re.escape(repr(value))};|'
                              rf'\bgot {re.escape(key)}={re.escape(str(value))};')
    return message

  def test_the_defaults_are_complete_and_pass(self):
    config = configs.get_config()
    configs.check(config)
    self.assertEqual(configs.flat(config).keys(), SETTINGS.keys())
    for key, setting in SETTINGS.items():
      setting.check(key, setting.default)
      self.assertEqual(configs.flat(config)[key], setting.default, key)

  def test_a_meaning_is_one_line_without_a_period(self):
    for key, setting in SETTINGS.items():
      self.assertRegex(setting.meaning, r'\A[^\n]*[^\n.\s]\Z', key)

  def test_a_value_of_another_type_is_named(self):
    read = lambda key, value: configs.updated(configs.get_config(), {key: value}, 'the test')
    for key, setting in SETTINGS.items():
      with self.subTest(key=key):
        wrong = 3.5 if isinstance(setting.default, str) else 'high'
        self.assertIn('expected a value like', self.refused(key, wrong, read))
    for key, value in (('rounds', 2.5), ('keep_best', 1), ('mlp.hidden', 7), ('rounds', None),
                       ('local.lr', None), ('name', None), ('mlp.hidden', None)):
      with self.subTest(key=key, value=value):
        self.assertIn('expected a value like', self.refused(key, value, read))

  def test_a_number_out_of_bounds_is_named(self):
    for key, setting in SETTINGS.items():
      if type(setting.default) in (int, float):
        for value in out_of_bounds(setting):
          with self.subTest(key=key, value=value):
            expected = setting.expected if math.isfinite(value) else 'a finite number'
            self.assertIn(f'expected {expected}', self.refused(key, value))

  def test_a_number_at_its_bound_passes(self):
    for key, setting in SETTINGS.items():
      for bound in (setting.at_least, setting.at_most):
        if bound is not None:
          setting.check(key, bound)

  def test_a_near_miss_of_a_choice_is_told_them_all_and_the_nearest(self):
    chosen = {key: setting.choices for key, setting in SETTINGS.items() if setting.choices} | NAMES
    self.assertGreater(len(chosen), 20)
    for key, choices in chosen.items():
      longest = max(choices, key=len)
      wrong = longest + 'x'
      with self.subTest(key=key, value=wrong):
        message = self.refused(key, wrong)
        self.assertIn(f'expected one of {", ".join(choices)}', message)
        self.assertEndsWith(message, f'; did you mean {longest}?')


class ConfigTest(parameterized.TestCase):

  def test_seeds_end_below_2_31(self):
    with self.assertRaisesRegex(InputError, f'got seed={2**31 - 2}'):
      configs.configure(seed=2**31 - 2)
    configs.configure(seed=2**31 - 2, seeds=2)

  def test_a_file_may_name_only_some_keys(self):
    full = configs.complete(ConfigDict({'rounds': 7, 'local': {'lr': 0.2}}))
    self.assertEqual((full.rounds, full.local.lr, full.local.batch), (7, 0.2, 20))

  def test_configure_takes_keys_with_and_without_a_section(self):
    config = configs.configure({'local.lr': 0.2}, rounds=7)
    self.assertEqual((config.rounds, config.local.lr, config.local.batch), (7, 0.2, 20))
    with self.assertRaisesRegex(InputError, 'got rounds=0'):
      configs.configure(rounds=0)

  def test_changes_make_a_copy(self):
    config = configs.configure(rounds=7)
    other = configs.updated(config, {'local.lr': 1, 'mlp.hidden': (3, 4)}, 'the test')
    self.assertEqual((other.rounds, other.local.lr, other.mlp.hidden), (7, 1.0, (3, 4)))
    self.assertIsInstance(other.local.lr, float)
    self.assertEqual((config.local.lr, config.mlp.hidden), (0.05, (128,)))

  @parameterized.named_parameters(
      ('key', 'gossip.rat', 'gossip.rate'), ('in_a_section', 'local.lrr', 'local.lr'),
      ('without_its_section', 'momentum', ''), ('of_a_section', 'gossip', ''))
  def test_an_unknown_key_is_named_with_the_nearest(self, key, near):
    with self.assertRaisesRegex(InputError, f'got {key} in the test; .*{near}'):
      configs.updated(configs.get_config(), {key: 0.1}, 'the test')

  @parameterized.named_parameters(
      ('int', 'rounds', '7', 7), ('float', 'local.lr', '0.5', 0.5),
      ('float_as_int', 'local.lr', '1', 1.0), ('exponent', 'local.lr', '1e-3', 1e-3),
      ('bool', 'keep_best', 'true', True), ('bool_of_python', 'keep_best', 'False', False),
      ('text', 'name', 'mine', 'mine'), ('number_as_text', 'name', '7', '7'),
      ('quoted', 'name', "'mine'", 'mine'), ('tuple', 'mlp.hidden', '(3, 4)', (3, 4)),
      ('list', 'mlp.hidden', '[3, 4]', (3, 4)), ('empty', 'mlp.hidden', '()', ()))
  def test_a_text_is_read_as_the_type_of_its_setting(self, key, text, expected):
    got = configs.flat(configs.from_texts(configs.get_config(), {key: text}, 'the test'))[key]
    self.assertEqual((got, type(got)), (expected, type(expected)))


  @parameterized.parameters(
      ('learning_rate', 'local.lr'), ('local.learning_rate', 'local.lr'), ('lr', 'local.lr'),
      ('batch_size', 'local.batch'), ('num_epochs', 'local.epochs'), ('num_clients', 'clients'),
      ('num_rounds', 'rounds'), ('momentum', 'local.momentum'), ('LR', 'local.lr'))
  def test_what_others_call_a_setting_is_understood(self, key, meant):
    with self.assertRaisesRegex(InputError, rf'got {key} .*; did you mean {meant}\?'):
      configs.updated(configs.get_config(), {key: 0.1}, 'the test')

  def test_every_alias_is_of_a_setting(self):
    self.assertContainsSubset(set(configs.ALIASES.values()), SETTINGS)

  @parameterized.parameters(
      ('mlp.hidden', (64.5,)), ('mlp.hidden', ('a',)), ('mlp.hidden', (True,)),
      ('mlp.hidden', (0,)), ('lstm.hidden', (8, -1)), ('mlp.hidden', (10**12,)),
      ('variants', (3,)), ('local.steps', 2**31), ('rounds', 2**63), ('local.lr', 1e-320),
      ('local.lr', 1e39), ('local.momentum', 1.0), ('fedopt.b1', 1.5), ('seeds', 2 * 10**9),
      ('name', '../x'), ('name', 'a/b'), ('name', '\x1b[2J'), ('name', '.hidden'))
  def test_values_that_mean_nothing_are_refused(self, key, value):
    with self.assertRaisesRegex(InputError, f'got {key}='):
      configs.configure({key: value})

  def test_a_placeholder_without_a_value_is_named(self):
    for placeholder in (config_dict.placeholder(int), config_dict.required_placeholder(int)):
      with self.assertRaisesRegex(InputError, 'got rounds=None; expected a value like 100'):
        configs.complete(ConfigDict({'rounds': placeholder}))
    half = ConfigDict({'local': {'lr': config_dict.placeholder(float)}})
    half.local.lr = 0.5
    self.assertEqual(configs.complete(half).local.lr, 0.5)

  def test_paths_are_those_of_the_folder_they_were_given_in(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(mock.patch.dict(os.environ, HOME=folder))
    for name in ('own.npz', 'graph.txt'):
      pathlib.Path(folder, name).touch()
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(folder)
    for given in ('own.npz', '~/own.npz', f'{folder}/own.npz'):
      self.assertEqual(configs.configure(dataset=f'npz:{given}').dataset, f'npz:{folder}/own.npz')
    changed = configs.configure({'gossip.topology': 'edges:graph.txt', 'data_dir': 'sets'})
    self.assertEqual(changed.gossip.topology, f'edges:{folder}/graph.txt')
    self.assertEqual(changed.data_dir, f'{folder}/sets')
    self.assertEqual(configs.configure(dataset='mnist:3.0.1').dataset, 'mnist:3.0.1')

  def test_folders_of_data_are_named_from_anywhere(self):
    folder = os.path.realpath(self.enterContext(tempfile.TemporaryDirectory()))
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(folder)
    os.mkdir('pets')
    for source in ('images', 'leaf', 'hf'):
      for name in ('pets', 'pets/', './pets', f'{folder}/pets'):
        config = configs.configure({'dataset': f'{source}:{name}'})
        self.assertEqual(config.dataset, f'{source}:{folder}/pets')
    self.assertEqual(configs.configure(dataset='tfds:pets').dataset, 'tfds:pets')
    self.assertEqual(configs.configure(dataset='hf:other').dataset, 'hf:other')


class OldKeysTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (f'{old.replace(".", "_")}', old, new) for old, new in configs.OLD_KEYS.items())
  def test_a_key_of_an_earlier_release_is_read(self, old, new):
    value = SETTINGS[new].default
    choices = ('mlflow',) if new == 'track' else SETTINGS[new].choices
    value = list(choices)[-1] if choices else value + 1
    saved = configs.get_config().to_dict()
    section, _, key = new.rpartition('.')
    table = saved[section] if section else saved
    del table[key]
    table[old.rpartition('.')[2]] = value
    self.assertEqual(configs.flat(configs.complete(saved))[new], value)
    self.assertEqual(configs.flat(configs.complete({old: value}))[new], value)

  @parameterized.named_parameters(
      (f'{key}_{old}'.replace('.', '_'), key, old, new)
      for (key, old), new in configs.OLD_VALUES.items())
  def test_a_value_of_an_earlier_release_is_read(self, key, old, new):
    self.assertEqual(configs.flat(configs.configure({key: old}))[key], new)
    text = configs.from_texts(configs.get_config(), {key: old}, 'the test')
    self.assertEqual(configs.flat(text)[key], new)

  def test_old_key_with_old_value(self):
    for was, now in ((True, 'tensorboard'), (False, '')):
      self.assertEqual(configs.configure(tensorboard=was).track, now)
      text = configs.from_texts(configs.get_config(), {'tensorboard': str(was)}, 'the test')
      self.assertEqual(text.track, now)
    config = configs.configure({'dmm.after': 're_estimated'})
    self.assertEqual(config.dmm.student_statistics, 'recalibrated')


if __name__ == '__main__':
  absltest.main()
