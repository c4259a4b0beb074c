"""A run tells its trackers every row once: while it trains, resumed, begun without, finished."""

import contextlib
import io
import os
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import jax.numpy as jnp
from reference.counting import counting, experiment
from report.trackers_test import values

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import tracking
from hmm_jax.experiment.run import run
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report.screen import Screen

FINISH = lambda state, federation, key: (state, {
    'messages_up': jnp.float32(30), 'messages_down': jnp.float32(0)})
# A tool that is there, is set up, and has no room from the second row on.
FULL = """
class Run:
  starting_step, offline, dir = 0, True, ''
  def define_metric(self, *names, **how): pass
  def log(self, row, step):
    if step: raise OSError('no room')
  def finish(self): pass
class Settings:
  mode = 'offline'
  def __init__(self, **given): pass
def setup():
  return type('Setup', (), {'settings': Settings()})
def init(**given):
  return Run()
"""


class TrackingTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = Workdir(os.path.join(self.folder, 'run'))

  def run_it(self, algorithm, **settings):
    return run(experiment(algorithm, **settings), {}, self.workdir, Screen(silent=True))

  def bytes_up(self, seed=0):
    """Returns the (round, value) points of one metric in the event files."""
    found = values(self.workdir.file('events', f'seed{seed}'))
    return [(step, value) for name, step, value in found if name == 'bytes_up']

  def test_each_row_is_told_and_that_before_the_finish_as_well(self):
    self.run_it(counting(finish=FINISH), track=('tensorboard',))
    for seed in (0, 1):
      self.assertEqual(self.bytes_up(seed), [(2, 40), (4, 80), (5, 100), (5, 400)])

  def test_a_tracker_of_a_run_that_has_begun_gets_all_rows(self):
    self.run_it(counting(), rounds=4)
    self.run_it(counting(), track=('tensorboard',))
    self.assertEqual(self.bytes_up(), [(2, 40), (4, 80), (5, 100)])

  def test_a_finished_run_sends_what_a_tracker_has_not_got_and_only_that(self):
    self.run_it(counting())
    config = configs.configure(track='tensorboard')
    tracking.catch_up(config, self.workdir, Screen(silent=True))
    self.assertEqual(self.bytes_up(), [(2, 40), (4, 80), (5, 100)])
    before = os.stat(self.workdir.file('events', 'seed0')).st_mtime_ns
    tracking.catch_up(config, self.workdir, Screen(silent=True))
    self.assertEqual(os.stat(self.workdir.file('events', 'seed0')).st_mtime_ns, before)

  def test_a_failing_tracker_is_one_line_and_changes_nothing(self):
    pathlib.Path(self.folder, 'wandb.py').write_text(FULL)
    plain = self.run_it(counting())
    rows = self.workdir.read_metrics()
    self.workdir = Workdir(os.path.join(self.folder, 'tracked'))
    with (mock.patch.dict(sys.modules), mock.patch.object(sys, 'path', [self.folder, *sys.path]),
          contextlib.redirect_stderr(io.StringIO()) as said):
      for loaded in ('wandb', 'hmm_jax.report.trackers.wandb'):
        sys.modules.pop(loaded, None)
      tracked = self.run_it(counting(), track=('wandb', 'tensorboard'))
    self.assertEqual(tracked['last']['bytes_up'], plain['last']['bytes_up'])
    self.assertLen(self.workdir.read_metrics(), len(rows))
    self.assertLen(self.bytes_up(), 3)
    self.assertRegex(said.getvalue(), r'\A[^\n]*track=wandb[^\n]*no room[^\n]*\n\Z')
    sent = self.workdir.read_json('track.json', ('id', 'sent'))['sent']
    self.assertEqual(sent, {'tensorboard': 6})  # So that the other is told again.

  def test_a_run_keeps_its_id_in_its_folder(self):
    told = []
    for rounds in (4, 5):
      self.run_it(counting(), rounds=rounds, track=('tensorboard',))
      told.append(self.workdir.read_json('track.json', ('id', 'sent'))['id'])
    self.assertEqual(told[0], told[1])

  def test_a_comparison_run_is_called_after_its_main_run(self):
    self.assertEqual(tracking.label('/runs/fedavg-digits'), 'fedavg-digits')
    self.assertEqual(tracking.label('/runs/fedavg-digits/references/iid'), 'fedavg-digits/iid')


if __name__ == '__main__':
  absltest.main()
