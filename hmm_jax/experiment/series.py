"""Several runs of one command: each checked before any trains, and all compared at the end."""

from collections.abc import Generator, Mapping, Sequence
import contextlib
import os

import jax

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import grid, recorded
from hmm_jax.experiment.launch import prepare, train
from hmm_jax.experiment.trainer import Diverged
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import tables
from hmm_jax.report.comparison import numbers, output
from hmm_jax.report.screen import Brief, Screen
from hmm_jax.types import InputError, SaveError


def folders(points: Sequence[grid.Point], workdir: str) -> dict[str, Workdir]:
  """Returns the folders of the points of a grid, after checking what needs no data.

  Raises:
    InputError: a point is impossible, has runs of its own beside it, or the folder is a run.
  """
  if any(point.config.references or point.config.variants for point in points):
    raise InputError('got references or variants with several values of a setting; expected one or '
                     'the other: several values of algorithm are compared, too')
  if os.path.exists(Workdir(workdir).file('config.json')):
    raise InputError(f'got workdir={workdir}, which is a run; expected a new folder, or one of '
                     'several runs')
  for point in points:
    with naming(point):
      configs.check(point.config)
  return {point.name: Workdir(Workdir(workdir).file(point.name)) for point in points}


def check(points: Sequence[grid.Point], places: Mapping[str, Workdir]) -> list[str]:
  """Builds what each point needs; returns the names of those that have finished.

  Raises:
    InputError: a point, its data or its folder does not suit.
  """
  done = []
  for point in points:
    with naming(point):
      if prepare(point.config, places[point.name]) is None:
        done.append(point.name)
  return done


def train_all(points: Sequence[grid.Point], workdir: str, screen: Screen):
  """Trains the points of a grid one after the other, or what is missing, and compares them.

  Args:
    points: of the grid.
    workdir: gets a run folder for each, and the figure and the tables in `comparison`.
    screen: gets one line per run, and the table.

  Raises:
    InputError: before anything is written.
    SaveError, Stopped: as in `run`.
    Diverged: some of them; the others are trained.
  """
  places = folders(points, workdir)
  finished, diverged = check(points, places), []
  for point in points:
    # A finished one would say that it is, which is the line below.
    own = Screen(silent=True) if point.name in finished else Brief(point.name, screen)
    try:
      summary = train(point.config, places[point.name], own)
      screen.say(f'{point.name}: {outcome(summary)}')
    except Diverged as error:  # The others are still worth having.
      screen.say(f'{point.name}: {error}')
      diverged.append(f'{point.name} {error}')
  lines, metric, folder = compared(places, workdir, screen)
  if lines:
    output.show(lines, metric, folder, screen)
  if diverged:
    raise Diverged('; '.join(diverged))


def compared(places: Mapping[str, Workdir], workdir: str,
             screen: Screen) -> tuple[list[numbers.Line], str, str]:
  """Compares the runs of a grid in its folder `comparison`.

  Returns:
    The table, its metric, and the folder; an empty table if there is nothing to compare, which
    the screen is told.
  """
  folder = Workdir(workdir).file(recorded.RESULTS)
  try:
    entries = recorded.entries([place.path for place in places.values()], lambda _: None)
    metric = numbers.choose_metric(entries)
  except InputError as error:
    screen.say(f'no comparison: {error}')
    return [], '', folder
  if jax.process_index() == 0:
    try:
      output.save(entries, metric, 'round', folder)
    except SaveError as error:  # Finished runs may lie on a disk that can't be written.
      screen.say(str(error))
  return numbers.compare(entries, metric), metric, folder


def outcome(summary: Mapping) -> str:
  """Says in a line what a run came to."""
  metric = next((name for name in numbers.METRICS if name in summary['last']), None)
  score = f'{metric} {tables.spread(summary["last"][metric])}, ' if metric else ''
  return f'round {summary["rounds"]}, {score}{summary["train_seconds"]:.1f} s'


@contextlib.contextmanager
def naming(point: grid.Point) -> Generator[None]:
  """Says in an error which point it is about."""
  try:
    yield
  except InputError as error:
    raise InputError(f'{point.name}: {error}') from error
