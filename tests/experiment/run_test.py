"""What happens between the chunks of a run: metrics, freezing, finishing, stopping, resuming."""

import contextlib
import csv
import itertools
import os
import pathlib
import signal
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.counting import FEDERATION, adding, counting, experiment, of_clients, weighing

from hmm_jax.experiment import stopping
from hmm_jax.experiment.checkpoint import Checkpoints
from hmm_jax.experiment.run import Progress, run
from hmm_jax.experiment.stopping import Stopped
from hmm_jax.experiment.trainer import Diverged, Trainer, _Pace
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError, Scores

# Orbax closes its loop at the first failure, while other reads are under way.
LATE_READS = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@contextlib.contextmanager
def interrupted(name, *, after, times=1):
  """Sends this process a signal after so many calls of the program, one or a few rounds each."""
  agree, calls, number = _Pace.agree, itertools.count(1), getattr(signal, name)

  def signaled(pace, seconds, stop):
    if next(calls) == after:
      for _ in range(times):
        signal.raise_signal(number)
      stop = True
    return agree(pace, 10.0, stop)  # So slow that it is asked after each round.

  before = signal.signal(number, signal.SIG_DFL)  # Tests may run where it is ignored.
  try:
    with mock.patch.object(_Pace, 'agree', signaled):
      yield
  finally:
    assert signal.signal(number, before) is signal.SIG_DFL  # The run has put it back.


class RunTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.workdir = Workdir(os.path.join(folder.name, 'run'))

  def run_it(self, algorithm, **settings):
    said = {name: value for name, value in settings.items() if name != 'evaluate'}
    return run(experiment(algorithm, **settings), said, self.workdir, Screen(silent=True))

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

  @parameterized.parameters('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1')
  def test_a_signal_stops_after_a_round_that_is_saved(self, name):
    """Stops twice between two evaluations; in the end nothing tells it from an unbroken run."""
    settings = dict(rounds=12, eval_every=6, evaluate=of_clients, keep_best=True)
    self.run_it(counting(), **settings)
    whole = {path: pathlib.Path(self.workdir.file(path)).read_bytes()
             for path in ('clients.csv', 'config.json')}
    rows, best = self.workdir.read_metrics(), self.saved()

    self.workdir = Workdir(self.workdir.path + '-stopped')
    for number in (1, 3):
      with (interrupted(name, after=number if number == 1 else 2),
            self.assertRaisesRegex(Stopped, f'round {number} of 12') as stopped):
        self.run_it(counting(), **settings)
      self.assertEqual(stopped.exception.code, 128 + getattr(signal, name))
      self.assertEmpty(self.workdir.read_metrics())
    self.run_it(counting(), **settings)
    without = lambda rows: [{**row, 'seconds': 0} for row in rows]
    self.assertEqual(without(self.workdir.read_metrics()), without(rows))
    for path, content in whole.items():
      self.assertEqual(pathlib.Path(self.workdir.file(path)).read_bytes(), content)
    jax.tree.map(np.testing.assert_array_equal, self.saved(), best)

  def test_a_second_interrupt_stops_at_once(self):
    with interrupted('SIGINT', after=1, times=2), self.assertRaises(KeyboardInterrupt):
      self.run_it(counting())
    self.assertEmpty(os.listdir(self.workdir.file('manifests')))

  @parameterized.parameters('SIGHUP', 'SIGINT')
  def test_a_signal_that_is_ignored_stays_so(self, name):
    before = signal.signal(getattr(signal, name), signal.SIG_IGN)  # As nohup does.
    self.addCleanup(signal.signal, getattr(signal, name), before)
    with stopping.on_signals() as request:
      signal.raise_signal(getattr(signal, name))
    self.assertEqual(request.number, 0)

  def test_rounds_are_trained_by_the_second(self):
    counts, pace = [], Trainer(experiment(counting()))._pace
    for seconds in (0.01, 0.3, 3.0):
      counts.append(pace.rounds(1000))
      pace.agree(seconds, False)
    self.assertEqual([*counts, pace.rounds(1000)], [1, 100, 3, 1])

  def test_an_evaluation_every_million_rounds_costs_no_million(self):
    self.run_it(counting(), eval_every=10**12)
    self.assertEqual([row['round'] for row in self.workdir.read_metrics()], [5, 5])

  def test_a_checkpoint_beyond_the_run_is_refused(self):
    self.run_it(counting(), rounds=6)
    with self.assertRaisesRegex(InputError, 'checkpoint of round 6 with rounds=4'):
      self.run_it(counting(), rounds=4)

  def test_a_previous_checkpoint_is_taken_on_request(self):
    self.run_it(counting(), evaluate=of_clients)
    rows, own = self.workdir.read_metrics(), self.workdir.read_table('clients')
    for path in pathlib.Path(self.workdir.file('checkpoints', '5')).rglob('d/*'):
      path.write_bytes(path.read_bytes()[:-1])
    run(experiment(counting(), evaluate=of_clients), {}, self.workdir, Screen(silent=True),
        previous=True)
    without = lambda rows: [{**row, 'seconds': 0} for row in rows]
    self.assertEqual(without(self.workdir.read_metrics()), without(rows))
    self.assertEqual(self.workdir.read_table('clients'), own)
    self.assertCountEqual(os.listdir(self.workdir.file('checkpoints')), ['4', '5'])

  def test_rows_beyond_the_checkpoint_are_made_again(self):
    self.run_it(counting())
    rows = self.workdir.read_metrics()
    self.workdir.table('metrics').write([*rows, {**rows[-1], 'round': 6, 'train/loss': -1.0}])
    self.run_it(counting(), rounds=6)
    self.assertEqual(self.workdir.read_metrics()[-1]['train/loss'], 6.0)

  def test_metrics_without_the_checkpoint_round_are_refused(self):
    self.run_it(counting())
    self.workdir.table('metrics').write(self.workdir.read_metrics()[:2])
    with self.assertRaisesRegex(InputError, 'got a damaged .*metrics.csv'):
      self.run_it(counting(), rounds=6)

  @LATE_READS
  def test_a_damaged_checkpoint_changes_nothing(self):
    self.run_it(counting())
    for path in pathlib.Path(self.workdir.file('checkpoints', '5')).rglob('d/*'):
      path.write_bytes(b'x' * path.stat().st_size)
    before = {path: path.read_bytes() for path in pathlib.Path(self.workdir.path).rglob('*')
              if path.is_file()}
    with self.assertRaisesRegex(InputError, 'got a damaged .*checkpoints/5/'):
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
    summary = self.run_it(counting(finish=adding(gain)), keep_best=True)
    chosen = summary['selected_on_validation']['global/validation/accuracy']['mean']
    self.assertEqual(chosen, best)
    saved = self.saved()
    self.assertEqual(saved.best.value.tolist(), [best] * 2)
    self.assertEqual(saved.states.value.tolist(), [5 + gain] * 2)

  def saved(self):
    """Returns the newest checkpoint of a run that keeps the best."""
    trainer = Trainer(experiment(counting()))
    kept = Checkpoints(self.workdir.file('checkpoints'))
    return kept.restore(kept.rounds()[-1], Progress(trainer.shapes, trainer.shapes))

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

  def test_gauges_are_read_at_every_evaluation(self):
    self.run_it(counting(finish=adding(100))._replace(
        gauges=lambda state: {'height': 2 * state.value}))
    self.assertEqual([row['height'] for row in self.workdir.read_metrics()[::2]],
                     [4, 8, 10, 210])

  def test_a_row_an_evaluation_seed_and_client(self):
    self.run_it(counting(finish=adding(100))._replace(gauges=weighing), evaluate=of_clients)
    with open(self.workdir.file('clients.csv'), newline='') as f:
      header, *rows = csv.reader(f)
    self.assertEqual(header, ['round', 'seed', 'client', 'test/rows', 'test/accuracy', 'cluster',
                              'weight/0', 'weight/1'])
    expected = []
    for number, value in ((2, 2), (4, 4), (5, 5), (5, 105)):
      for seed in '01':
        expected += [
            [f'{number}', seed, '7', '3', f'{value}.0', '0.0', f'{value}.0', f'{2 * value}.0'],
            [f'{number}', seed, '2', '0', '', '2.0', f'{3 * value}.0', f'{4 * value}.0'],
            [f'{number}', seed, '9', '1', f'{value / 10}', '1.0', f'{5 * value}.0',
             f'{6 * value}.0']]
    self.assertEqual(rows, expected)
    measured = self.workdir.read_metrics()
    self.assertEqual([row['height'] for row in measured[::2]], [4, 8, 10, 210])
    self.assertEmpty({'cluster', 'weight', 'test/accuracy'} & measured[0].keys())

  def test_a_column_says_who_is_corrupted(self):
    made = experiment(counting(), evaluate=of_clients)
    for corrupted, said in ((None, [None] * 3), (jnp.array([False, True, True]), [0, 1, 1])):
      federation = FEDERATION._replace(corrupted=corrupted)
      workdir = Workdir(f'{self.workdir.path}-{said[0]}')
      run(made._replace(federation=federation), {}, workdir, Screen(silent=True))
      rows = workdir.read_table('clients')
      self.assertLen(rows, 3 * 2 * 3)
      self.assertEqual([row.get('corrupted') for row in rows], said * 6)
      self.assertEqual('corrupted' in rows[0], corrupted is not None)

  def test_clients_of_whom_nothing_is_known_have_no_file(self):
    self.run_it(counting())
    self.assertFalse(os.path.exists(self.workdir.file('clients.csv')))
    self.assertEmpty(self.workdir.read_table('clients'))

  @parameterized.parameters(
      (2, None, ''), (2, None, '4,0,7,3,1.0,0.'), (4, None, '5,0'), (5, adding(100), ''),
      (5, adding(100), '5,0,7,3,1.0,0.'))
  def test_a_kill_before_the_checkpoint_leaves_no_trace_in_clients(self, last, finish, half):
    algorithm = counting(finish=finish)._replace(gauges=weighing)
    self.run_it(algorithm, evaluate=of_clients)
    path = pathlib.Path(self.workdir.file('clients.csv'))
    whole, rows = path.read_bytes(), self.workdir.read_metrics()

    self.workdir = Workdir(self.workdir.path + '-killed')
    path = pathlib.Path(self.workdir.file('clients.csv'))
    save = Checkpoints.save

    def killed(checkpoints, number, progress):
      if number == last:
        raise KeyboardInterrupt
      save(checkpoints, number, progress)

    with mock.patch.object(Checkpoints, 'save', killed), self.assertRaises(KeyboardInterrupt):
      self.run_it(algorithm, evaluate=of_clients)
    # There is a trace to drop.
    self.assertEqual(self.workdir.read_table('clients')[-1]['round'], last)
    path.write_bytes(path.read_bytes() + half.encode())
    self.run_it(algorithm, evaluate=of_clients)
    self.assertEqual(path.read_bytes(), whole)
    seconds = lambda rows: [{**row, 'seconds': 0} for row in rows]
    self.assertEqual(seconds(self.workdir.read_metrics()), seconds(rows))

  def test_damaged_clients_change_nothing(self):
    self.run_it(counting(), evaluate=of_clients)
    path = pathlib.Path(self.workdir.file('clients.csv'))
    path.write_bytes(path.read_bytes().replace(b'4,1,2', b'4,?,2'))
    before = {path: path.read_bytes() for path in pathlib.Path(self.workdir.path).rglob('*')
              if path.is_file()}
    with self.assertRaisesRegex(InputError, 'got a damaged .*clients.csv'):
      run(experiment(counting(), rounds=6), {'rounds': 6}, self.workdir, Screen(silent=True))
    after = {path: path.read_bytes() for path in pathlib.Path(self.workdir.path).rglob('*')
             if path.is_file()}
    self.assertEqual(before, after)

  def test_clients_of_a_run_from_before_a_column_go_on(self):
    self.run_it(counting(), evaluate=of_clients)
    before = self.workdir.read_table('clients')
    self.run_it(counting()._replace(gauges=weighing), rounds=6, evaluate=of_clients)
    rows = self.workdir.read_table('clients')
    self.assertEqual(rows[:len(before)], before)
    self.assertEqual([row['weight/1'] for row in rows[len(before):]], [12, 24, 36] * 2)

  def test_a_run_from_before_a_column_goes_on(self):
    self.run_it(counting())
    self.run_it(counting()._replace(gauges=lambda state: {'height': state.value}), rounds=6)
    rows = self.workdir.read_metrics()
    self.assertEqual([row['round'] for row in rows[::2]], [2, 4, 5, 6])
    self.assertEqual(rows[-1]['height'], 6)

  def test_views_see_the_federation(self):
    self.run_it(counting()._replace(views=lambda state, federation: {
        'global': state.value + federation.clients.size.sum() / 2}))
    values = [row['global/validation/accuracy'] for row in self.workdir.read_metrics()[::2]]
    self.assertEqual(values, [5.5, 7.5, 8.5])

  @parameterized.parameters((5.0, 1), (0.5, 0))
  def test_training_that_has_gone_wrong_is_told(self, loss, lines):
    losing = lambda views: Scores({'global/validation/accuracy': 0.1,
                                   'global/test/loss': 100 * loss}, {})
    made = experiment(counting(), rounds=1, evaluate=losing, seeds=(3,))._replace(
        classes=4, warnings=('odd',))  # Guessing has a loss of 1.39; the training loss is 1.
    summary = run(made, {}, self.workdir, Screen(silent=True))
    self.assertEqual(summary['warnings'][0], 'odd')
    self.assertLen(summary['warnings'][1:], lines)
    self.assertTrue(all('seed 3' in line and 'test/loss' in line
                        for line in summary['warnings'][1:]))

  def test_a_bad_round_is_named_and_its_clients(self):
    trainer = Trainer(experiment(counting(blow_up=4), eval_every=5))
    with self.assertRaisesRegex(Diverged, r'round 4, seed 0: clients \[7\] turned non-finite'):
      list(trainer.rounds(trainer.initial(), 0))

  def test_a_diverged_run_keeps_its_checkpoint(self):
    with self.assertRaisesRegex(Diverged, 'round 4.*the checkpoint of round 2 is kept'):
      self.run_it(counting(blow_up=4))
    self.assertEqual(self.workdir.read_metrics()[-1]['round'], 2)
    self.assertTrue(os.path.isdir(self.workdir.file('checkpoints', '2')))

  def test_one_that_diverges_at_once_has_none(self):
    with self.assertRaisesRegex(Diverged, 'nothing was saved before'):
      self.run_it(counting(blow_up=1))

  def test_patience_counts_evaluations_without_improvement(self):
    shrinking = counting()._replace(views=lambda state, _: {'global': -state.value})
    summary = self.run_it(shrinking, rounds=100, patience=3)
    self.assertEqual(summary['rounds'], 8)
    self.assertEqual(self.run_it(shrinking, rounds=100, patience=3)['rounds'], 8)

  def test_patience_waits_for_the_last_of_the_seeds(self):
    # The first seed is best at once, the second improves until round 6.
    scores = iter([0.5, 0.1, 0.4, 0.2, 0.4, 0.3, 0.4, 0.2])
    summary = self.run_it(counting(), rounds=100, patience=1, evaluate=lambda views: Scores(
        {'global/validation/accuracy': next(scores)}, {}))
    self.assertEqual(summary['rounds'], 8)

  def test_seconds_add_up_over_chunks_and_calls(self):
    rounds = Trainer.rounds

    def timed(trainer, *args, **kwargs):
      for chunk in rounds(trainer, *args, **kwargs):
        yield chunk._replace(seconds=1.5)

    with mock.patch.object(Trainer, 'rounds', timed):
      self.run_it(counting())
      self.run_it(counting(), rounds=6)
    self.assertEqual([row['seconds'] for row in self.workdir.read_metrics()[::2]],
                     [1.5, 3.0, 4.5, 6.0])

  def test_the_selected_round_is_the_best_on_validation(self):
    shrinking = counting()._replace(views=lambda state, _: {'global': -state.value})
    summary = self.run_it(shrinking, keep_best=True)
    self.assertEqual(summary['selected_on_validation']['round']['mean'], 2)

  @parameterized.parameters(
      # What the criterion is at the rounds 2, 4, ...
      ('global/validation/accuracy', [0.3, 0.7, 0.5, 0.6], 4),
      ('global/validation/loss', [0.3, 0.7, 0.2, 0.6], 6),
      ('clients/validation/accuracy', [0.9, 0.7, 0.5, 0.9], 2),  # The first of equals.
      ('clients/validation/loss', [0.9, 0.7, 0.5, 0.9], 6),
      ('clients/validation/loss', [np.nan, 0.7, np.nan, 0.9], 4),
      ('clients/validation/loss', [0.9, np.nan, 0.7, np.nan], 6))
  def test_the_criterion_selects(self, criterion, values, number):
    def evaluate(views):
      place = round(float(views['global']) / 2) - 1
      others = {f'{view}/validation/{metric}': place * sign
                for view in ('global', 'clients') for metric in ('accuracy', 'loss')
                for sign in ([1, -1][place % 2],)}
      return Scores(others | {criterion: values[place]}, {})

    settings = dict(evaluate=evaluate, criterion=criterion, keep_best=True, rounds=8)
    summary = self.run_it(counting(), **settings)
    self.assertEqual(summary['selected_on_validation']['round']['seeds'], [number] * 2)
    self.assertEqual(summary['criterion'], criterion)
    self.assertEqual(self.saved().best.value.tolist(), [number] * 2)

  @parameterized.parameters(
      ('loss', [0.3, 0.2, 0.4, 0.5, 0.1], 8), ('accuracy', [0.3, 0.4, 0.2, 0.1, 0.5], 8),
      ('loss', [0.5, 0.4, 0.3, 0.2, 0.1], 10), ('loss', [0.3, np.nan, np.nan, 0.1, 0.0], 6))
  def test_patience_heeds_the_criterion(self, metric, values, rounds):
    def evaluate(views):
      value = values[round(float(views['global']) / 2) - 1]
      return Scores({f'clients/validation/{metric}': value}, {})

    summary = self.run_it(counting(), evaluate=evaluate, patience=2, rounds=10,
                          criterion=f'clients/validation/{metric}')
    self.assertEqual(summary['rounds'], rounds)


if __name__ == '__main__':
  absltest.main()
