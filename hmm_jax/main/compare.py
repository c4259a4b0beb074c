"""hmm_jax compare: runs side by side."""

from typing import Annotated

import typer


def compare(
    runs: Annotated[list[str], typer.Argument(
        help='Folders of runs, finished or not, or of grids.', metavar='RUN')],
    out: Annotated[str, typer.Option(help='Folder for the figure and the tables.')],
    by: Annotated[str, typer.Option(help='Curves over: round, bytes or seconds.')] = 'round',
    metric: Annotated[str, typer.Option(
        help='A column of metrics.csv; by default the main test metric, such as accuracy.')] = '',
    references: Annotated[bool, typer.Option(
        '--references', help='Also what the runs were compared with, RUN/references/*.')] = False):
  """Compare runs in one figure and one table, with paired differences to the first.

  Runs that differ only in seed, seeds and partition.seed are one: this is the way to have a
  partition for each seed.
  """
  from hmm_jax.experiment import recorded
  from hmm_jax.experiment.workdir import Workdir
  from hmm_jax.report.comparison import figure, numbers, output
  from hmm_jax.report.screen import Screen
  from hmm_jax.types import InputError

  if by not in figure.BY:
    raise InputError(f'got by={by}; expected one of {", ".join(figure.BY)}')
  screen = Screen()
  entries = recorded.entries(runs, screen.say, references=references)
  metric = numbers.choose_metric(entries, metric)
  Workdir(out).check_writable('out')
  output.show(output.save(entries, metric, by, Workdir(out).path), metric, out, screen)
