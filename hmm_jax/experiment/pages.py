"""The page about a run, or several, made from their folders alone: no data set is needed."""

from collections.abc import Sequence
import os
import pathlib

from hmm_jax.experiment import description, plots
from hmm_jax.experiment.run import figures
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import page
from hmm_jax.report.plots import clients
from hmm_jax.report.style import save_pair
from hmm_jax.types import InputError, SaveError

NAME = 'report.html'
NEEDED = ('rounds', 'rounds_requested', 'last', 'train_seconds')  # of summary.json


def of_run(workdir: Workdir):
  """Draws the plots of a run, and writes the page about it into its folder."""
  plots.of_run(workdir)
  write([workdir], workdir.file(NAME))


def of_all(workdir: Workdir):
  """Draws the clients of a run beside those of its references, and writes the page about all."""
  shown = with_references(workdir)
  if shown and (runs := plots.accuracies(workdir)):
    figure = clients.clients(runs, description.describe(workdir).title)
    save_pair(figure, workdir.file('plots', 'clients'))
  if shown:
    write(shown, workdir.file(NAME))


def are_there(workdir: Workdir) -> bool:
  """Returns whether the plots and the page that every run has are there."""
  return plots.are_drawn(workdir) and os.path.exists(workdir.file(NAME))


def write(workdirs: Sequence[Workdir], path: str):
  """Writes the page about some runs.

  Raises:
    InputError: a folder has no run with an evaluation, or it is damaged.
    SaveError: the page can't be saved.
  """
  page.write(tell(workdirs), path)


def tell(workdirs: Sequence[Workdir]) -> list[page.Told]:
  """Reads what the page says; each run has a name that no other has."""
  told = [_told(workdir) for workdir in workdirs]
  for name_of in (lambda one, path: one.name, lambda one, path: os.path.basename(path),
                  lambda one, path: path):
    names = [name_of(one, os.path.abspath(workdir.path)) for one, workdir in zip(told, workdirs)]
    if len(set(names)) == len(names):
      break
  return [one._replace(name=name) for one, name in zip(told, names)]


def with_references(workdir: Workdir) -> list[Workdir]:
  """Returns a run and those beside it, as far as they have an evaluation."""
  folder = pathlib.Path(workdir.path)
  tables = [folder / 'metrics.csv', *sorted(folder.glob('references/*/metrics.csv'))]
  return [Workdir(str(path.parent)) for path in tables if path.exists()]


def _told(workdir: Workdir) -> page.Told:
  about = description.describe(workdir)
  rows, saved = workdir.read_metrics(), workdir.read_json('config.json')
  if not rows or saved is None:
    raise InputError(f'got {workdir.path}, a run without an evaluation; expected one with some')
  rounds, summary = saved['rounds'], workdir.read_json('summary.json', NEEDED)
  finished = summary is not None and summary['rounds_requested'] == rounds
  state = (f'Finished: {summary["rounds"]} rounds.' if finished else
           f'Unfinished: round {rows[-1]["round"]} of {rounds}.')
  if not finished:
    summary = figures(rows, sorted({row['seed'] for row in rows}), '')
  return page.Told(
      about.name, about.title, state, about.facts, about.changed, about.command, rows,
      workdir.read_table('clients'), plots.of_clients(workdir), summary)


def redraw(folders: Sequence[str], out: str) -> tuple[str, list[str]]:
  """Redraws the plots of runs, and writes the page about them.

  Args:
    folders: of the runs; what one alone was compared with is on its page.
    out: path of the page; '': RUN/report.html of one run, ./report.html of several.

  Returns:
    The path, and a line for each folder whose plots can't be saved.

  Raises:
    InputError: a folder has no run with an evaluation, or it is damaged.
    SaveError: the page can't be saved.
  """
  workdirs = [Workdir(folder) for folder in folders]
  shown = (len(workdirs) == 1 and with_references(workdirs[0])) or workdirs
  path = os.path.expanduser(out) or (workdirs[0].file(NAME) if len(folders) == 1 else NAME)
  told, lines = tell(shown), []
  if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or '.'):
    raise InputError(f'got out={out}; expected the path of a file in a folder that is there')
  for workdir in workdirs:
    try:
      plots.of_run(workdir)
    except SaveError as error:  # The page may go elsewhere.
      lines.append(str(error))
  page.write(told, path)
  return path, lines
