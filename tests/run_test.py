"""What happens between the chunks: rows, freezing, finishing, stopping, workdirs."""

import os
import pathlib
import tempfile
from typing import Any, NamedTuple
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import pytest

from hmm_jax import config as defaults
from hmm_jax import main
from hmm_jax import run as run_module
from hmm_jax.checkpoint import Checkpoints
from hmm_jax.log import Screen, Workdir
from hmm_jax.run import Progress, run
from hmm_jax.trainer import Diverged, Experiment, Trainer, in_turn
from hmm_jax.types import Algorithm, Cohort, InputError, Traffic

# Orbax closes its loop at the first failure, while other reads are under way.
LATE_READS = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


class State(NamedTuple):
  round: Any
  value: Any


def counting(blow_up=10**6, finish=None):
  """Adds one a round; from round `blow_up` on, client 7's model is infinite."""

  def play(state, federation, key):
    value = state.value + 1
    bad = value >= blow_up
    cohort = Cohort(id=jnp.array([3, 7]), loss=jnp.ones(2),
                    finite=jnp.stack([jnp.bool_(True), ~bad]), size=jnp.ones(2, int),
                    steps=jnp.ones(2, int))
    metrics = {'train/loss': value, 'messages_up': jnp.float32(2),
               'messages_down': jnp.float32(1), 'cohort': cohort}
    return State(state.round + 1, jnp.where(bad, jnp.inf, value)), metrics

  return Algorithm(
      init=lambda key, federation: State(jnp.int32(0), jnp.float32(0)), round=play,
      views=lambda state, _: {'global': state.value}, traffic=Traffic(up=10, down=100),
      finish=finish)


def experiment(algorithm, **settings):
  values = {'rounds': 5, 'eval_every': 2, 'seeds': (0, 1), **settings}
  return Experiment(
      algorithm, federation=jnp.zeros(()), seed_map=in_turn,
      evaluate=lambda views: {'global/validation/accuracy': float(views['global'])},
      sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]), **values)


class RunTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.workdir = Workdir(os.path.join(folder.name, 'run'))

  def run_it(self, algorithm, **settings):
    return run(experiment(algorithm, **settings), settings, self.workdir, Screen(silent=True))

  def test_a_row_an_evaluation_and_seed_with_sums_and_means(self):
    self.run_it(counting())
    rows = self.workdir.read_metrics()
    self.assertEqual([(row['round'], row['seed']) for row in rows],
                     [(2, 0), (2, 1), (4, 0), (4, 1), (5, 0), (5, 1)])
    self.assertEqual([row['bytes_up'] for row in rows[::2]], [40, 80, 100])
    self.assertEqual([row['bytes_down'] for row in rows[::2]], [200, 400, 500])
    self.assertEqual([row['train/loss'] for row in rows[::2]], [1.5, 3.5, 5.0])

  def test_more_rounds_continue_from_the_checkpoint(self):
    self.run_it(counting())
    summary = self.run_it(counting(), rounds=9)
    rows = self.workdir.read_metrics()
    self.assertEqual([row['round'] for row in rows[::2]], [2, 4, 5, 6, 8, 9])
    self.assertEqual(summary['last']['global/validation/accuracy']['mean'], 9)

  def test_rows_beyond_the_checkpoint_are_made_again(self):
    self.run_it(counting())
    rows = self.workdir.read_metrics()
    self.workdir.write_metrics([*rows, {**rows[-1], 'round': 6, 'train/loss': -1.0}])
    self.run_it(counting(), rounds=6)
    self.assertEqual(self.workdir.read_metrics()[-1]['train/loss'], 6.0)

  def test_metrics_without_the_checkpoint_round_are_refused(self):
    self.run_it(counting())
    self.workdir.write_metrics(self.workdir.read_metrics()[:2])
    with self.assertRaisesRegex(InputError, 'without round 5'):
      self.run_it(counting(), rounds=6)

  @LATE_READS
  def test_a_damaged_checkpoint_changes_nothing(self):
    self.run_it(counting())
    for path in pathlib.Path(self.workdir.file('checkpoints', '5')).rglob('d/*'):
      path.write_bytes(b'x' * path.stat().st_size)
    before = {path: path.read_bytes() for path in pathlib.Path(self.workdir.path).rglob('*')
              if path.is_file()}
    with self.assertRaisesRegex(InputError, 'damaged or foreign checkpoint'):
      self.run_it(counting(), rounds=6)
    after = {path: path.read_bytes() for path in pathlib.Path(self.workdir.path).rglob('*')
             if path.is_file()}
    self.assertEqual(before, after)

  def test_finish_is_applied_once_between_two_evaluations_of_the_last_round(self):
    def finish(state, federation, key):
      return state._replace(value=state.value + 100), {
          'messages_up': jnp.float32(30), 'messages_down': jnp.float32(3)}

    summary = self.run_it(counting(finish=finish))
    rows = self.workdir.read_metrics()
    self.assertEqual([row['global/validation/accuracy'] for row in rows[::2]], [2, 4, 5, 105])
    self.assertEqual([row['round'] for row in rows[::2]], [2, 4, 5, 5])
    self.assertEqual([row['train/loss'] for row in rows[::2]], [1.5, 3.5, 5.0, 5.0])
    self.assertEqual([row['bytes_up'] for row in rows[::2]], [40, 80, 100, 400])
    self.assertEqual([row['bytes_down'] for row in rows[::2]], [200, 400, 500, 800])
    self.assertEqual(summary['last']['global/validation/accuracy']['mean'], 105)
    self.assertEqual(summary['before_finish']['global/validation/accuracy']['mean'], 5)
    # Once means once: neither a second look nor what is on disk repeats it.
    self.assertEqual(self.run_it(counting(finish=finish))['last'], summary['last'])
    self.assertEqual(self.workdir.read_metrics(), rows)

  @parameterized.parameters((100, 105), (-100, 5))
  def test_the_finished_model_is_selected_if_it_is_best(self, gain, best):
    finish = lambda state, federation, key: (state._replace(value=state.value + gain), {
        'messages_up': jnp.float32(0), 'messages_down': jnp.float32(0)})
    summary = self.run_it(counting(finish=finish), keep_best=True)
    chosen = summary['selected_on_validation']['global/validation/accuracy']['mean']
    self.assertEqual(chosen, best)
    kept = Checkpoints(self.workdir.file('checkpoints'), 2)
    trainer = Trainer(experiment(counting()))
    saved = kept.restore(5, Progress(trainer.shapes, trainer.shapes))
    self.assertEqual(saved.best.value.tolist(), [best] * 2)
    self.assertEqual(saved.states.value.tolist(), [5 + gain] * 2)

  def test_a_run_that_stops_early_finishes_too(self):
    def finish(state, federation, key):  # So good that patience alone would go on.
      return state._replace(value=-state.value), {
          'messages_up': jnp.float32(0), 'messages_down': jnp.float32(0)}

    falling = counting(finish=finish)._replace(views=lambda state, _: {'global': -state.value})
    summary = self.run_it(falling, rounds=20, patience=1)
    rows = self.workdir.read_metrics()
    self.assertEqual([row['round'] for row in rows[::2]], [2, 4, 4])
    self.assertEqual(rows[-1]['global/validation/accuracy'], 4)
    self.assertEqual(summary['before_finish']['global/validation/accuracy']['mean'], -4)
    os.remove(self.workdir.file('summary.json'))  # As if killed before it was written.
    self.run_it(falling, rounds=20, patience=1)
    self.assertEqual(self.workdir.read_metrics(), rows)

  def test_tensorboard_gets_the_rows_before_and_after(self):
    finish = lambda state, federation, key: (state, {
        'messages_up': jnp.float32(30), 'messages_down': jnp.float32(0)})
    with mock.patch.object(run_module, 'Events') as events:
      self.run_it(counting(finish=finish), tensorboard=True)
    written = [row for call in events().write.call_args_list for row in call.args[0]]
    self.assertEqual([row['bytes_up'] for row in written[::2]], [40, 80, 100, 400])

  def test_gauges_are_read_at_every_evaluation(self):
    finish = lambda state, federation, key: (state._replace(value=state.value + 100), {
        'messages_up': jnp.float32(0), 'messages_down': jnp.float32(0)})
    self.run_it(counting(finish=finish)._replace(
        gauges=lambda state: {'height': 2 * state.value}))
    self.assertEqual([row['height'] for row in self.workdir.read_metrics()[::2]],
                     [4, 8, 10, 210])

  def test_a_run_from_before_a_column_goes_on(self):
    self.run_it(counting())
    self.run_it(counting()._replace(gauges=lambda state: {'height': state.value}), rounds=6)
    rows = self.workdir.read_metrics()
    self.assertEqual([row['round'] for row in rows[::2]], [2, 4, 5, 6])
    self.assertEqual(rows[-1]['height'], 6)

  def test_views_see_the_federation(self):
    made = experiment(counting()._replace(views=lambda state, data: {'global': state.value + data}))
    run(made._replace(federation=jnp.float32(0.5)), {}, self.workdir, Screen(silent=True))
    values = [row['global/validation/accuracy'] for row in self.workdir.read_metrics()[::2]]
    self.assertEqual(values, [2.5, 4.5, 5.5])

  def test_a_bad_round_freezes_the_state_before_it(self):
    trainer = Trainer(experiment(counting(blow_up=4), eval_every=5))
    with self.assertRaisesRegex(Diverged, r'round 4, seed 0: clients \[7\] turned non-finite'):
      list(trainer.rounds(trainer.initial(), 0))

  def test_a_diverged_run_keeps_its_checkpoint(self):
    with self.assertRaises(Diverged):
      self.run_it(counting(blow_up=4))
    self.assertEqual(self.workdir.read_metrics()[-1]['round'], 2)
    self.assertTrue(os.path.isdir(self.workdir.file('checkpoints', '2')))

  def test_patience_counts_evaluations_without_improvement(self):
    shrinking = counting()._replace(views=lambda state, _: {'global': -state.value})
    summary = self.run_it(shrinking, rounds=100, patience=3)
    self.assertEqual(summary['rounds'], 8)
    self.assertEqual(self.run_it(shrinking, rounds=100, patience=3)['rounds'], 8)

  def test_the_selected_round_is_the_best_on_validation(self):
    shrinking = counting()._replace(views=lambda state, _: {'global': -state.value})
    summary = self.run_it(shrinking, keep_best=True)
    self.assertEqual(summary['selected_on_validation']['round']['mean'], 2)


class WorkdirTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.workdir = Workdir(os.path.join(folder.name, 'run'))
    self.config = defaults.get_config()

  def leave(self, *, evaluations=1, **changes):
    """Leaves what a run with the changed config would, evaluated so often in round 10."""
    self.config.update_from_flattened_dict(changes)
    self.workdir.write_json('config.json', self.config.to_dict())
    self.workdir.write_metrics([{'round': 10, 'seed': 0, 'seconds': 1.0}] * evaluations)
    self.config = defaults.get_config()

  def test_a_new_folder_and_the_same_settings_are_fine(self):
    main.compare(self.config, self.workdir)
    self.leave()
    main.compare(self.config, self.workdir)

  def test_rounds_may_grow(self):
    self.leave(rounds=20)
    main.compare(self.config, self.workdir)

  def test_a_kill_while_rounds_are_added_leaves_no_finished_run(self):
    self.config.update_from_flattened_dict({
        'dataset': 'synthetic', 'partition.kind': 'iid', 'seeds': 1, 'mlp.hidden': (4,),
        'rounds': 1})
    main.train(self.config, self.workdir, Screen(silent=True))
    self.config.rounds = 2
    self.workdir.write_json('config.json', self.config.to_dict())  # All that it got to.
    summary = main.train(self.config, self.workdir, Screen(silent=True))
    self.assertEqual(summary['rounds'], 2)

  def test_what_is_shown_beside_a_run_may_change(self):
    self.leave()
    self.config.update_from_flattened_dict({
        'name': 'mine', 'references': 'iid', 'variants': ('hot local.lr=1.0',)})
    main.compare(self.config, self.workdir)

  def age(self, *keys):
    """Makes the config look as if it were from before these keys."""
    saved = self.workdir.read_json('config.json')
    for key in keys:
      del saved[key]
    saved['local'] = {k: v for k, v in saved['local'].items() if k != 'label_smoothing'}
    self.workdir.write_json('config.json', saved)

  def test_a_key_that_is_newer_than_the_run_has_had_its_default(self):
    self.leave()
    self.age('gossip', 'variants')
    main.compare(self.config, self.workdir)
    finished = {'rounds': 10, 'rounds_requested': 100}
    self.workdir.write_json('summary.json', finished)
    self.assertEqual(main.train(self.config, self.workdir, Screen(silent=True)), finished)
    for key, value in (('local.label_smoothing', 0.1), ('gossip.degree', 3)):
      self.config = defaults.get_config()
      self.config.update_from_flattened_dict({key: value})
      with self.assertRaisesRegex(InputError, f'got {key}={value} in .* made with {key}='):
        main.compare(self.config, self.workdir)

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
    main.check_extension(self.config, self.workdir, counting()._replace(**has))  # A new run.
    self.leave(evaluations=evaluations, rounds=was)
    self.config.rounds = now
    algorithm = counting()._replace(**has)
    if expected is None:
      main.check_extension(self.config, self.workdir, algorithm)
    else:
      with self.assertRaisesRegex(InputError, f'got rounds={now} for a run of {was}; {expected}'):
        main.check_extension(self.config, self.workdir, algorithm)

  def test_a_config_without_results_has_no_length(self):
    self.workdir.write_json('config.json', {**self.config.to_dict(), 'rounds': 10})
    main.compare(self.config, self.workdir)
    main.check_extension(self.config, self.workdir, counting()._replace(length=100))

  def test_a_finished_run_of_gossip_is_not_extended(self):
    self.leave(evaluations=2, algorithm='gossip', rounds=10, dataset='synthetic')
    before = pathlib.Path(self.workdir.file('config.json')).read_bytes()
    self.config.update_from_flattened_dict({
        'algorithm': 'gossip', 'rounds': 20, 'dataset': 'synthetic'})
    with self.assertRaisesRegex(InputError, 'it has finished'):
      main.train(self.config, self.workdir, Screen(silent=True))
    self.assertEqual(pathlib.Path(self.workdir.file('config.json')).read_bytes(), before)

  @parameterized.parameters(
      ('local.lr', 0.5), ('rounds', 200), ('mlp.hidden', (7,)), ('partition.seed', 4))
  def test_any_other_change_is_named(self, key, value):
    self.leave(**{key: value})
    with self.assertRaisesRegex(InputError, f'got {key}='):
      main.compare(self.config, self.workdir)

  def test_results_without_a_config_are_refused(self):
    self.workdir.write_metrics([{'round': 10, 'seed': 0}])
    with self.assertRaisesRegex(InputError, 'but no config.json'):
      main.compare(self.config, self.workdir)

  def test_a_damaged_config_is_refused(self):
    self.leave()
    with open(self.workdir.file('config.json'), 'w') as f:
      f.write('{"rounds": 1')
    with self.assertRaisesRegex(InputError, 'damaged .*config.json'):
      main.compare(self.config, self.workdir)

  @parameterized.parameters('[1, 2]', '{"epochs": 3}', 'null')
  def test_a_foreign_config_is_refused(self, content):
    self.leave()
    with open(self.workdir.file('config.json'), 'w') as f:
      f.write(content)
    with self.assertRaisesRegex(InputError, 'foreign .*config.json'):
      main.compare(self.config, self.workdir)

  @parameterized.parameters(
      b'a,b\n1,2\n', b'round,seed,seconds\n1,2\n', b'round,seed,seconds\n1,2,3,4\n',
      b'round,seed,seconds\n1,x,3\n', b'\xff\xfe\x00\x01')
  def test_damaged_metrics_are_refused(self, content):
    self.leave()
    with open(self.workdir.file('metrics.csv'), 'wb') as f:
      f.write(content)
    with self.assertRaisesRegex(InputError, 'metrics.csv'):
      self.workdir.read_metrics()

  @parameterized.parameters('/proc/nothing', __file__)
  def test_a_folder_that_cannot_be_written_is_refused(self, path):
    with self.assertRaisesRegex(InputError, 'expected a folder that can be written'):
      main.compare(self.config, Workdir(path))


if __name__ == '__main__':
  absltest.main()
