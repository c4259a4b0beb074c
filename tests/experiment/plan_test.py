"""A plan says before a run what it then does, and leaves nothing behind."""

import os
import tempfile

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
from reference.counting import counting, experiment

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import cost, launch
from hmm_jax.experiment import plan as plans
from hmm_jax.experiment.run import run
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

TINY = {'dataset': 'synthetic', 'synthetic.rows': 120, 'synthetic.shape': (4, 4, 1),
        'synthetic.classes': 3, 'clients': 5, 'participation': 3, 'rounds': 6, 'eval_every': 2,
        'seeds': 1, 'partition.alpha': 1.0, 'mlp.hidden': (4,), 'local.epochs': 1,
        'local.batch': 8, 'mapper': 'map'}


class PlanTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = Workdir(os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'run'))

  def planned(self, measure=False, **changes):
    return dict(plans.plan(configs.configure(TINY | changes), self.workdir, measure=measure))

  def train(self, **changes):
    """Trains a run; returns its experiment."""
    config = configs.configure(TINY | changes)
    made, _, _ = launch.prepare(config, self.workdir)
    run(made, config.to_dict(), self.workdir, Screen(silent=True))
    return made

  @parameterized.named_parameters(
      ('each_round', {'algorithm': 'fedavg'}),
      ('as_drawn_and_at_the_end', {'algorithm': 'gossip', 'gossip.final_merge': 'ring:2',
                                   'gossip.merged_statistics': 'averaged'}))
  def test_bytes_are_those_of_the_run(self, changes):
    made = self.train(**changes)
    found, traffic = cost.sent(made), made.algorithm.traffic
    last = self.workdir.read_metrics()[-1]
    self.assertAlmostEqual(found.up.sum() * traffic.up, last['bytes_up'], delta=1)
    self.assertAlmostEqual(found.down.sum() * traffic.down, last['bytes_down'], delta=1)

  def test_steps_are_the_batches_of_all_clients(self):
    found = self.planned(participation=0)
    _, federated, _ = launch.prepare(configs.configure(TINY), self.workdir)
    batches = int(np.ceil(federated.clients.size / 8).sum())
    self.assertEqual(found['local steps'],
                     f'{batches} a round, {6 * batches} in all, for one seed')
    self.assertEqual(found['parameters of a model'], f'{16 * 4 + 4 + 4 * 3 + 3}')

  def test_what_depends_on_training_is_said_to(self):
    def play(state, federation, key):
      state, metrics = made.round(state, federation, key)
      seen = jnp.float32(federation.examples.x.sum())
      return state, metrics | {'messages_up': seen}

    made = counting()
    found = cost.sent(experiment(made._replace(round=play)))
    self.assertIsNone(found.up)
    self.assertEqual(found.down.tolist(), [1] * 5 + [0])

  def test_nothing_is_written(self):
    self.assertEqual(self.planned()['the folder'], 'begins a new run')
    self.assertFalse(os.path.lexists(self.workdir.path))

  def test_a_begun_and_a_finished_run_are_told_apart_and_left_alone(self):
    self.train()
    times = lambda: {path: os.stat(path).st_mtime_ns for path, _, _ in os.walk(self.workdir.path)}
    before = times()
    self.assertIn('finished run of 6 rounds', self.planned()['the folder'])
    found = self.planned(measure=True, rounds=9)
    self.assertEqual(found['the folder'], 'goes on after round 6')
    self.assertStartsWith(found['rounds'], '3 to go of 9')
    self.assertStartsWith(found['evaluations'], '2, ')  # Of the rounds 8 and 9.
    self.assertRegex(found['time, by two rounds'], r'^[\d.]+ (s|minutes): compiling ')
    self.assertEqual(times(), before)
    with self.assertRaisesRegex(InputError, 'got clients=4'):
      self.planned(clients=4)

  def test_comparison_runs_are_planned_too(self):
    config = configs.configure(TINY | {'references': 'local', 'variants': ('hot local.lr=1.0',)})
    self.assertEqual([(changed.algorithm, os.path.relpath(folder.path, self.workdir.path))
                      for changed, folder in plans.runs(config, self.workdir)],
                     [('fedavg', '.'), ('local', 'references/local'), ('fedavg', 'references/hot')])

  def test_changes_are_what_differs_from_the_defaults(self):
    config = configs.configure({'rounds': 100, 'local.lr': 0.5})
    self.assertEqual(plans.changes(config), [('local.lr', '0.5', '0.05')])

  @parameterized.parameters((0, '0 bytes'), (999, '999 bytes'), (1000, '1 kB'), (20430, '20.4 kB'),
                            (1.5e9, '1.5 GB'), (2e16, '2e+04 TB'))
  def test_sizes_have_a_unit(self, count, said):
    self.assertEqual(plans.size(count), said)

  @parameterized.parameters(
      (1.25, '1.2 s'), (99, '99 s'), (150, '2.5 minutes'), (9000, '2.5 hours'))
  def test_durations_have_a_unit(self, seconds, said):
    self.assertEqual(plans.duration(seconds), said)


if __name__ == '__main__':
  absltest.main()
