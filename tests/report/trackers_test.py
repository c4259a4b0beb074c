"""Trackers get every row once, whenever a run was killed and resumed, and hold up no training."""

import contextlib
import io
import os
import pathlib
import struct
import sys
import tempfile
import threading
import time
from unittest import mock

from absl.testing import absltest, parameterized
from tensorboardX.proto import event_pb2

from hmm_jax.report import trackers
from hmm_jax.report.trackers.background import Background
from hmm_jax.report.trackers.tensorboard import Events
from hmm_jax.types import InputError


def row(number, seed=3):
  return {'round': number, 'seed': seed, 'loss': 0.5 * number}


def values(folder):
  """Reads all event files of a folder: sorted (name, step, value)."""
  found = []
  for path in pathlib.Path(folder).iterdir():
    content = path.read_bytes()
    while content:
      size, = struct.unpack('<Q', content[:8])  # Then four bytes of a checksum, and after.
      event = event_pb2.Event.FromString(content[12:12 + size])
      found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
      content = content[16 + size:]
  return sorted(found)


class TensorBoardTest(absltest.TestCase):

  def test_rows_of_a_run_that_goes_on_are_there_once(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    run = trackers.Tracked('1', 'mine', {}, folder)
    first = Events(run, 3)
    first.write(0, row(1))
    first.write(1, row(2))  # After which a kill took the checkpoint.
    first.close()
    second = Events(run, 3)
    for number in range(3):
      second.write(number, row(1 + number))
    second.close()
    self.assertEqual(values(os.path.join(folder, 'events', 'seed3')),
                     [('loss', k, 0.5 * k) for k in (1, 2, 3)])


class NamesTest(parameterized.TestCase):

  def test_names_are_read_in_order_and_once(self):
    self.assertEqual(trackers.named(''), ())
    self.assertEqual(trackers.named('wandb, mlflow,wandb,'), ('wandb', 'mlflow'))

  @parameterized.parameters(('wanbd', 'wandb'), ('mlflow,tensorbord', 'tensorboard'))
  def test_an_unknown_name_is_told_with_the_nearest(self, track, meant):
    with self.assertRaisesRegex(InputError, f'got track=.*; expected .*did you mean {meant}'):
      trackers.named(track)

  @parameterized.parameters(*trackers.TRACKERS)
  def test_a_missing_package_is_told_with_the_command_that_installs_it(self, name):
    loaded = f'hmm_jax.report.trackers.{name}'
    with mock.patch.dict(sys.modules, {trackers.TRACKERS[name].package: None}):
      sys.modules.pop(loaded, None)
      with self.assertRaisesRegex(InputError, rf"track={name}.*pip install 'hmm_jax\[{name}\]'"):
        trackers.opener(name)

  def test_a_broken_package_is_told_as_one(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / 'wandb.py').write_text('raise RuntimeError("no such thing")')
    with mock.patch.dict(sys.modules), mock.patch.object(sys, 'path', [str(folder), *sys.path]):
      for loaded in ('wandb', 'hmm_jax.report.trackers.wandb'):
        sys.modules.pop(loaded, None)
      with self.assertRaisesRegex(InputError, 'track=wandb.*RuntimeError: no such thing'):
        trackers.opener('wandb')


class Notes:
  """Notes what it is told, after `ready`; fails at the row of a round."""

  def __init__(self, ready=None, fails_at=None):
    self.told, self.closed, self._ready, self._fails_at = [], [], ready, fails_at

  def open_seed(self, run, seed):
    if self._ready:
      self._ready.wait()
    return Seed(self, seed)

  def note(self, seed, number, row):
    if row['round'] == self._fails_at:
      raise OSError('the disk\nis full')
    self.told.append((seed, number, row['round']))


class Seed:

  def __init__(self, notes, seed):
    self.place, self._notes, self._seed = 'here', notes, seed

  def write(self, number, row):
    self._notes.note(self._seed, number, row)

  def close(self):
    self._notes.closed.append(self._seed)


class BackgroundTest(absltest.TestCase):

  def begin(self, notes):
    return Background('notes', notes.open_seed, trackers.Tracked('1', 'mine', {}, ''))

  def test_rows_are_numbered_for_each_seed_and_sent_in_order(self):
    notes = Notes()
    tracker = self.begin(notes)
    tracker.write([row(2, 0), row(2, 1)])
    tracker.write([row(4, 0), row(4, 1), row(4, 0)])
    self.assertTrue(tracker.close())
    self.assertEqual(notes.told, [(0, 0, 2), (1, 0, 2), (0, 1, 4), (1, 1, 4), (0, 2, 4)])
    self.assertEqual((notes.closed, tracker.places, tracker.sent), ([0, 1], ['here'], 5))

  def test_training_waits_for_no_tracker(self):
    ready = threading.Event()
    self.addCleanup(ready.set)
    tracker, start = self.begin(Notes(ready, fails_at=2)), time.perf_counter()
    tracker.write([row(number) for number in range(1000)])
    with contextlib.redirect_stderr(io.StringIO()) as said:
      self.assertFalse(tracker.close(patience=0.05))
      self.assertLess(time.perf_counter() - start, 5)
      ready.set()
      self.assertFalse(tracker.close())  # It has failed since, of which nothing more is said.
    self.assertRegex(said.getvalue(), r'\A[^\n]*notes[^\n]*not all was sent[^\n]*\n\Z')

  def test_a_failure_is_one_line_and_the_end_of_it(self):
    notes = Notes(fails_at=2)
    with contextlib.redirect_stderr(io.StringIO()) as said:
      tracker = self.begin(notes)
      for number in range(5):
        tracker.write([row(number)])
      self.assertFalse(tracker.close())
    self.assertRegex(said.getvalue(), r'\A[^\n]*notes[^\n]*OSError: the disk is full[^\n]*\n\Z')
    self.assertEqual([number for _, _, number in notes.told], [0, 1])


if __name__ == '__main__':
  absltest.main()
