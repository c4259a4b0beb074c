"""The plots of a run, drawn from the tables in its folder: at the end, and while it trains."""

from collections.abc import Callable, Sequence
import contextlib
import os
import pathlib
import time

import numpy as np

from hmm_jax.experiment import blueprint, description
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import words
from hmm_jax.report.plots import clients, curves, lines, partition, search, updates, weights
from hmm_jax.report.style import Figure, save_pair
from hmm_jax.types import InputError, SaveError

SHARE = 0.05  # of the time of training that drawing may take
FIRST = 5.0  # seconds that the first drawing is thought to take


def of_run(workdir: Workdir):
  """Draws all plots of a run's tables into its folder plots/, each as PNG and PDF."""
  for name, figure in figures(workdir, description.describe(workdir).title).items():
    save_pair(figure, workdir.file('plots', name))


def figures(workdir: Workdir, title: str) -> dict[str, Figure]:
  """Returns all figures of a run, by the names of their files."""
  return curves.learning_curves(workdir.read_metrics(), title) | of_clients(workdir, title)


def of_clients(workdir: Workdir, title: str = '') -> dict[str, Figure]:
  """Returns the figures of a run that are no learning curves."""
  made, rows = {}, workdir.read_table('clients')
  if (counts := read_partition(workdir)) is not None:
    made['partition'] = partition.partition(
        counts, title, client_names(workdir), *classes(workdir))
  if runs := accuracies(workdir):
    made['clients'] = clients.clients(runs, title)
  made |= weights.client_tables(rows, title)
  if anchors := workdir.read_table('anchors'):
    corrupted = {row['client'] for row in rows if row.get('corrupted')}
    made['coefficients'] = updates.coefficients(anchors, corrupted, title)
    if len({row['delay'] for row in anchors if 'delay' in row}) > 1:  # Else there is one bar.
      made['staleness'] = updates.staleness(anchors, title)
  if searches := workdir.read_table('search'):
    made['search'] = search.searches(searches, title)
  return made


def accuracies(workdir: Workdir) -> dict[str, list[dict]]:
  """Returns the clients.csv of a run and of those beside it that have test metrics, by name."""
  beside = sorted(pathlib.Path(workdir.path).glob('references/*/config.json'))
  runs = {description.describe(workdir).name: workdir} | {
      path.parent.name: Workdir(str(path.parent)) for path in beside}
  tables = {name: run.read_table('clients') for name, run in runs.items()}
  return {name: rows for name, rows in tables.items()
          if any(f'test/{kind}' in row for row in rows for kind in words.MAIN)}


def are_drawn(workdir: Workdir) -> bool:
  """Returns whether the plots that every run has are there."""
  names = ('partition', *lines.kinds(workdir.read_metrics()))
  return all(os.path.exists(workdir.file('plots', f'{name}.{ending}'))
             for name in names for ending in ('png', 'pdf'))


def write_partition(workdir: Workdir, ids: np.ndarray, counts: np.ndarray,
                    names: Sequence[str] = ()):
  """Writes partition.csv: the training examples of each client by class, counts [K, C].

  Args:
    workdir: of the run.
    ids: of the clients, [K].
    counts: [K, C].
    names: of the clients, () if they have none.
  """
  called = [{'name': name} for name in names] or [{}] * len(ids)
  workdir.table('partition').write([
      {'client': int(i)} | name | {str(c): int(n) for c, n in enumerate(row)}
      for i, name, row in zip(ids, called, counts)])


def read_partition(workdir: Workdir) -> np.ndarray | None:
  """Returns the counts in partition.csv, [K, C]; None for a run of before there was one."""
  rows = workdir.read_table('partition')
  count = lambda row: [value for name, value in row.items() if name not in ('client', 'name')]
  return np.array([count(row) for row in rows], int) if rows else None


def client_names(workdir: Workdir) -> tuple[str, ...]:
  """Returns the names of a run's clients, as partition.csv has them; () if they have none."""
  return tuple(row['name'] for row in workdir.read_table('partition') if 'name' in row)


def classes(workdir: Workdir) -> tuple[tuple[str, ...], str]:
  """Returns the names of the classes that a run has learned, and what stands in their place."""
  about = workdir.read_json('model.json', blueprint.KEYS) or {}
  task = about.get('task', 'classification')
  names = tuple(about.get('names', ())) if task == 'classification' else ()
  return names, {'classification': 'class', 'regression': 'quantile of the target'}.get(task, '')


class Painter:
  """Draws a run at its evaluations, as often as that takes a small share of the time."""

  def __init__(self, draw: Callable[[], None], clock: Callable[[], float] = time.perf_counter):
    self._draw, self._clock = draw, clock
    self._cost, self._since = FIRST, clock()

  def __call__(self):
    """Draws, unless the last drawing was too costly for the time since."""
    start = self._clock()
    if self._cost > SHARE * (start - self._since):
      return
    with contextlib.suppress(SaveError, InputError):  # At the end they are errors.
      self._draw()
    self._since = self._clock()
    self._cost = self._since - start
