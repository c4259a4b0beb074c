"""Which folders a run may begin or go on in, and what it says before it begins."""

import json
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
import pytest

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import launch
from hmm_jax.experiment.saved import Run
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report.screen import Screen
from hmm_jax.types import Algorithm, InputError, SaveError, Traffic

TINY = {'dataset': 'synthetic', 'partition.kind': 'iid', 'mlp.hidden': (4,), 'seeds': 1,
        'mapper': 'map'}
ANY_ALGORITHM = Algorithm(init=None, round=None, views=None, traffic=Traffic(up=1, down=1))


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = Workdir(os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run'))

  def leave(self, config=None, *, evaluations=1, **changes):
    """Leaves what a run with some settings would, evaluated so often in round 10."""
    config = config or configs.configure(changes).to_dict()
    self.workdir.make()
    self.workdir.write_json('config.json', config)
    self.workdir.table('metrics').write([{'round': 10, 'seed': 0, 'seconds': 1.0}] * evaluations)

  def compare(self, **changes):
    launch.compare(configs.configure(changes), self.workdir)


class CompareTest(FolderTest):

  def test_a_new_folder_and_the_same_settings_are_fine(self):
    self.compare()
    self.leave(rounds=20)
    self.compare(rounds=20)
    self.compare()  # More rounds: 100.

  def test_what_is_shown_beside_a_run_may_change(self):
    self.leave()
    self.compare(name='mine', references='iid', variants=('hot local.lr=1.0',))
    self.compare(keep=7, track='tensorboard')

  def test_evaluations_may_change_unless_they_decide(self):
    self.leave()
    self.compare(eval_every=3)
    for decides in ({'keep_best': True}, {'stop.patience': 2}):
      self.leave(configs.configure(decides).to_dict())
      with self.assertRaisesRegex(InputError, 'got eval_every=3 .*go by evaluations'):
        launch.compare(configs.configure(decides, eval_every=3), self.workdir)

  @parameterized.parameters(
      ('local.lr', 0.5), ('rounds', 200), ('mlp.hidden', (7,)), ('partition.seed', 4))
  def test_any_other_change_is_named(self, key, value):
    self.leave(**{key: value})
    with self.assertRaisesRegex(InputError, f'got {key}='):
      self.compare()

  def test_a_key_that_is_newer_than_the_run_has_had_its_default(self):
    saved = configs.get_config().to_dict()
    for key in ('gossip', 'variants'):
      del saved[key]
    del saved['local']['label_smoothing']
    self.leave(saved)
    self.compare()
    for key, value in (('local.label_smoothing', 0.1), ('gossip.degree', 3)):
      with self.assertRaisesRegex(InputError, f'got {key}={value} in .* made with {key}='):
        self.compare(**{key: value})

  def test_a_run_of_an_earlier_release_has_had_old_keys_and_values(self):
    saved = configs.configure(normalize='none', algorithm='centralized').to_dict()
    saved['normalise'], saved['algorithm'] = saved.pop('normalize'), 'centralised'
    saved['inversion']['length'] = saved['inversion'].pop('norm') + 1
    saved['tensorboard'] = bool(saved.pop('track'))
    self.leave(saved)
    now = {'normalize': 'none', 'algorithm': 'centralized', 'inversion.norm': saved[
        'inversion']['length']}
    self.compare(**now)
    for key in now:
      with self.assertRaisesRegex(InputError, f'got {key}='):
        self.compare(**{name: value for name, value in now.items() if name != key})

  def test_results_without_a_config_are_refused(self):
    self.workdir.make()
    self.workdir.table('metrics').write([{'round': 10, 'seed': 0}])
    with self.assertRaisesRegex(InputError, 'with metrics.csv but no config.json'):
      self.compare()

  @parameterized.parameters(b'name,city\nAnn,Bonn\n', b'id,age\n1,30\n')
  def test_a_clients_file_of_somebody_else_is_not_touched(self, content):
    os.makedirs(self.workdir.path)
    path = pathlib.Path(self.workdir.file('clients.csv'))
    path.write_bytes(content)
    with self.assertRaisesRegex(InputError, 'with clients.csv but no config.json'):
      self.compare()
    with self.assertRaisesRegex(InputError, 'got a (damaged|foreign) .*clients.csv'):
      self.workdir.table('clients').cut(0)
    self.assertEqual(path.read_bytes(), content)

  @parameterized.named_parameters(
      ('damaged', '{"rounds": 1'), ('list', '[1, 2]'), ('foreign', '{"epochs": 3}'),
      ('null', 'null'))
  def test_a_config_that_is_no_runs_is_refused(self, content):
    self.leave()
    pathlib.Path(self.workdir.file('config.json')).write_text(content)
    with self.assertRaisesRegex(InputError, 'got a (damaged|foreign) .*config.json'):
      self.compare()

  @parameterized.parameters('/proc/nothing', __file__)
  def test_a_folder_that_cannot_be_written_is_refused(self, path):
    with self.assertRaisesRegex(InputError, f'got workdir={path}; '):
      launch.prepare(configs.get_config(), Workdir(path))


class ExtensionTest(FolderTest):

  @parameterized.parameters(
      # The last rows are of round 10. Rounds then and now:
      (1, 100, 100, {'length': 100}, None),
      (1, 100, 200, {}, None),
      (1, 100, 200, {'finish': True}, None),  # It was stopped before it finished.
      (2, 100, 200, {'finish': True}, 'it has finished with a merge'),  # Patience ran out.
      (1, 100, 200, {'length': 200}, 'its schedule reads its length'),
      (1, 10, 20, {'length': 20}, 'its schedule reads its length'),
      (2, 10, 20, {'finish': True}, 'it has finished with a merge'),
      (2, 10, 20, {'finish': True, 'length': 20}, 'its schedule reads its length'),
      (2, 10, 10, {'finish': True}, None),
      (1, 10, 20, {}, None))
  def test_more_rounds_than_were_read_or_finished_are_refused(
      self, evaluations, was, now, has, expected):
    config, algorithm = configs.configure(rounds=now), ANY_ALGORITHM._replace(**has)
    launch.check_extension(config, self.workdir, algorithm)  # A new run.
    self.leave(evaluations=evaluations, rounds=was)
    if expected is None:
      launch.check_extension(config, self.workdir, algorithm)
    else:
      with self.assertRaisesRegex(InputError, f'got rounds={now} for a run of {was}; {expected}'):
        launch.check_extension(config, self.workdir, algorithm)

  def test_a_config_without_results_has_no_length(self):
    self.workdir.make()
    self.workdir.write_json('config.json', configs.configure(rounds=10).to_dict())
    self.compare()
    launch.check_extension(configs.get_config(), self.workdir, ANY_ALGORITHM._replace(length=100))

  def test_a_finished_run_of_gossip_is_not_extended(self):
    self.leave(evaluations=2, algorithm='gossip', rounds=10, dataset='synthetic')
    before = pathlib.Path(self.workdir.file('config.json')).read_bytes()
    config = configs.configure(algorithm='gossip', rounds=20, dataset='synthetic')
    with self.assertRaisesRegex(InputError, 'it has finished'):
      launch.train(config, self.workdir, Screen(silent=True))
    self.assertEqual(pathlib.Path(self.workdir.file('config.json')).read_bytes(), before)


def compiling(*args, **kwargs):
  raise AssertionError('something was compiled')


class TrainTest(FolderTest):

  def test_a_finished_run_is_read(self):
    config = configs.configure(TINY, rounds=1)
    made = launch.train(config, self.workdir, Screen(silent=True))
    with mock.patch.object(Trainer, 'compile', compiling):
      self.assertEqual(launch.train(config, self.workdir, Screen(silent=True)), made)

  @pytest.mark.draws
  def test_plots_of_a_finished_run_are_drawn_again_where_they_are_missing(self):
    config = configs.configure(TINY, rounds=1)
    with (mock.patch.object(launch.pages, 'of_run', side_effect=SaveError('full')),
          self.assertRaises(SaveError)):
      launch.train(config, self.workdir, Screen(silent=True))
    launch.train(configs.configure(TINY, rounds=1, plots=False), self.workdir, Screen(silent=True))
    self.assertNotIn('report.html', os.listdir(self.workdir.path))  # It was not asked for.
    launch.train(config, self.workdir, Screen(silent=True))
    names = ['plots/accuracy.png', 'plots/loss.pdf', 'plots/partition.png', 'report.html']
    for name in names:
      self.assertTrue(os.path.exists(self.workdir.file(name)), name)
    for name in (names[1], names[-1]):
      os.remove(self.workdir.file(name))
      launch.train(config, self.workdir, Screen(silent=True))
      self.assertTrue(os.path.exists(self.workdir.file(name)), name)

  def test_a_run_goes_on_with_the_data_it_began_with(self):
    path = os.path.join(os.path.dirname(self.workdir.path), 'own.npz')
    rng = np.random.default_rng(0)
    arrays = {'x_train': rng.random((200, 6), np.float32), 'y_train': np.arange(200) % 4,
              'x_test': rng.random((40, 6), np.float32), 'y_test': np.arange(40) % 4}
    config = lambda rounds: configs.configure(TINY, dataset=f'npz:{path}', rounds=rounds)
    np.savez(path, **arrays)
    launch.train(config(1), self.workdir, Screen(silent=True))
    for what, changed in (('inputs', {'x_test': arrays['x_test'] * 2}),
                          ('labels', {'y_train': arrays['y_train'][::-1]})):
      np.savez(path, **arrays | changed)
      with self.assertRaisesRegex(InputError, f'got other {what} than .*{self.workdir.path}'):
        launch.train(config(2), self.workdir, Screen(silent=True))
      with self.assertRaisesRegex(InputError, f'got other {what}'):
        _ = Run.load(self.workdir.path).federation
    np.savez_compressed(path, **arrays)
    self.assertEqual(launch.train(config(2), self.workdir, Screen(silent=True))['rounds'], 2)

  @parameterized.parameters('null', '"10"', '[]')
  def test_rounds_of_a_saved_config_that_are_no_number_are_refused(self, rounds):
    self.leave()
    path = pathlib.Path(self.workdir.file('config.json'))
    saved = json.loads(path.read_text())
    del saved['digest']
    path.write_text(json.dumps(saved | {'rounds': json.loads(rounds)}))
    with self.assertRaisesRegex(InputError, 'got rounds=100 in'):
      self.compare()

  def test_types_of_64_bits_change_nothing(self):
    config = configs.configure(TINY, rounds=2)
    run = launch.run_config(config, self.workdir.path, silent=True)
    x = run.dataset.x_test[:5]
    with jax.enable_x64(True):
      wide = launch.run_config(config, f'{self.workdir.path}-wide', silent=True)
      predicted = wide.predict(x)
    self.assertEqual([{**row, 'seconds': 0} for row in wide.metrics],
                     [{**row, 'seconds': 0} for row in run.metrics])
    np.testing.assert_array_equal(predicted, run.predict(x))
    self.assertEqual(predicted.dtype, np.float32)

  def test_a_kill_while_rounds_are_added_leaves_no_finished_run(self):
    config = configs.configure(TINY, rounds=2)
    launch.train(configs.configure(TINY, rounds=1), self.workdir, Screen(silent=True))
    self.workdir.write_json('config.json', config.to_dict())  # All that it got to.
    summary = launch.train(config, self.workdir, Screen(silent=True))
    self.assertEqual(summary['rounds'], 2)

  def test_more_frequent_evaluation_changes_no_number(self):
    often = os.path.join(os.path.dirname(self.workdir.path), 'often')
    for path, stages in ((self.workdir.path, ((4, 2), (8, 1))), (often, ((8, 1),))):
      for rounds, every in stages:
        run = launch.run_config(configs.configure(TINY, rounds=rounds, eval_every=every), path,
                                silent=True)
    rows = {path: {row['round']: row['global/test/loss'] for row in Run.load(path).metrics}
            for path in (self.workdir.path, often)}
    self.assertEqual([*rows[self.workdir.path]], [2, 4, 5, 6, 7, 8])
    self.assertEqual(rows[often], rows[often] | rows[self.workdir.path])
    self.assertEqual(run.rounds, 8)

  def test_the_table_before_the_first_round_says_who_has_which_data(self):
    config = configs.configure(TINY, **{
        'server.size': 30, 'corrupt.kind': 'random', 'corrupt.clients': 0.25})
    screen = mock.create_autospec(Screen, instance=True)
    screen.table.side_effect = KeyboardInterrupt
    with self.assertRaises(KeyboardInterrupt):
      launch.train(config, self.workdir, screen)
    figures = ' '.join(f'{what}: {value}' for what, value in screen.table.call_args.args[2])
    self.assertRegex(figures, 'server.*: 24 to learn from, 6 held out, from held_out')
    self.assertIn('corrupted clients: 5', figures)

  @parameterized.parameters('validation', 'test')
  def test_bad_input_is_heard_before_anything_is_compiled_or_written(self, name):
    config = configs.configure({'algorithm': 'fedmerge', f'partition.{name}': 0.0})
    with (mock.patch.object(jax, 'jit', compiling),
          mock.patch.object(Trainer, 'compile', compiling),
          self.assertRaisesRegex(InputError, rf'got partition.{name}=0.0, .*client 0 without')):
      launch.train(config, self.workdir, Screen(silent=True))
    self.assertFalse(os.path.exists(self.workdir.path))


class DefaultWorkdirTest(parameterized.TestCase):

  @parameterized.parameters(
      ('digits', 'digits'), ('emnist/letters', 'letters'), ('npz:/sets/own.npz', 'own'),
      ('text:/sets/speeches.jsonl', 'speeches'), ('text:lines.v2.jsonl.xz', 'lines.v2'),
      ('text:~/speeches.jsonl.gz', 'speeches'), ('csv:/sets/a.csv.gz', 'a'),
      ('images:/sets/pets/', 'pets'), ('leaf:femnist', 'femnist'), ('hf:user/name', 'name'),
      ('hf:t.parquet', 't'), ('mnist:3.0.1', 'mnist'), ('given:mine', 'mine'))
  def test_is_named_after_the_algorithm_and_the_data(self, dataset, name):
    config = configs.configure(dataset=dataset)
    self.assertEqual(launch.default_workdir(config), f'runs/fedavg-{name}')
    self.assertEqual(launch.default_workdir(configs.configure(dataset=dataset, name='mine')),
                     f'runs/mine-{name}')


if __name__ == '__main__':
  absltest.main()
