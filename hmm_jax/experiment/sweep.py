"""Sweeps: the points of a grid, each trained in a process of its own."""

from collections.abc import Mapping, Sequence
import contextlib
import subprocess
import sys
import tempfile
import time
from typing import IO, NamedTuple

from hmm_jax.experiment import stopping
from hmm_jax.experiment.grid import Point
from hmm_jax.experiment.launch import compare, read_summary
from hmm_jax.experiment.series import naming, outcome
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report.screen import Screen


class Job(NamedTuple):
  """A process that trains a point."""

  point: Point
  process: subprocess.Popen
  errors: IO[str]  # what it says on stderr


def check(points: Sequence[Point], places: Mapping[str, Workdir]):
  """Checks the folders of the points; data and network are checked by their processes.

  Raises:
    InputError: a folder has a run with other settings.
  """
  for point in points:
    with naming(point):
      compare(point.config, places[point.name])


def train_apart(points: Sequence[Point], places: Mapping[str, Workdir], words: Sequence[str],
                jobs: int, screen: Screen) -> int:
  """Trains each point in a process, so that one that dies does not take others along.

  Args:
    points: of a grid.
    places: their folders.
    words: of the command that all share: a config file and flags.
    jobs: processes at a time.
    screen: gets one line per run.

  Returns:
    The exit code of the first point that failed, or 0.

  Raises:
    Stopped: a signal has ended it, after all processes have saved.
  """
  waiting, running, codes = [*points], [], {}
  with stopping.on_signals() as request, contextlib.ExitStack() as files:
    try:
      while running or (waiting and not request.number):
        while waiting and len(running) < jobs and not request.number:
          point = waiting.pop(0)
          errors = files.enter_context(tempfile.TemporaryFile('w+'))
          running.append(_start(point, places[point.name], words, errors))
        for job in [job for job in running if job.process.poll() is not None]:
          running.remove(job)
          codes[job.point.name] = _end(job, places[job.point.name], screen)
        if request.number:
          _ask_to_stop(running)
        time.sleep(0.05)
    finally:
      for job in running:
        job.process.kill()
  if request.number:
    raise stopping.Stopped('stopped; the same command goes on', request.code)
  return next((code for code in (codes[point.name] for point in points) if code), 0)


def _start(point, place, words, errors) -> Job:
  process = subprocess.Popen(
      [sys.executable, '-m', 'hmm_jax.main', *words,
       *(f'--config.{key}={text}' for key, text in point.texts.items()),
       f'--workdir={place.path}'], stdout=subprocess.DEVNULL, stderr=errors)
  return Job(point, process, errors)


def _end(job, place, screen) -> int:
  """Says in a line how a process has ended; returns its exit code."""
  code = job.process.returncode
  code = 128 - code if code < 0 else code  # As a shell says that a signal has killed it.
  job.errors.seek(0)
  *_, why = ['', *filter(str.strip, job.errors)]
  summary = read_summary(place) if code == 0 else None
  said = outcome(summary) if summary else f'exit code {code} {why.strip()}'
  screen.say(f'{job.point.name}: {said}')
  return code


def _ask_to_stop(running):
  """Lets processes finish their round and save; asking again does no harm."""
  for job in running:
    job.process.terminate()
