"""hmm_jax sweep: a run for each value of some settings, and a choice on validation data."""

from typing import Annotated

import typer


def sweep(
    context: typer.Context,
    jobs: Annotated[int, typer.Option(help='Processes at a time.', min=1)] = 1):
  """Train with each value of some settings, and choose on validation data.

  \b
  --config.KEY=A,B,C     the values; of several keys, every combination
  --workdir=FOLDER       where the runs live; runs/KEY-DATA by default
  Every other flag is one of `hmm_jax run`. Each run has a process of its own, so
  that one that dies does not take others along. The same command again resumes.
  """
  from hmm_jax.experiment import grid, series
  from hmm_jax.experiment import sweep as processes
  from hmm_jax.experiment.stopping import Stopped
  from hmm_jax.main import train
  from hmm_jax.report.comparison import output
  from hmm_jax.report.screen import Screen, fail
  from hmm_jax.types import InputError

  words = ['hmm_jax sweep', *context.args]
  base, texts, rest = train.read_changes(words)
  points = grid.points(base, texts)
  if stray := train.parse_flags(rest)[1:]:
    raise InputError(f'got argument {stray[0]}; expected only --flags')
  if len(points) == 1:
    raise InputError('got no setting with several values; expected --config.KEY=A,B')
  workdir, screen = train.WORKDIR.value or grid.workdir(points), Screen()
  places = series.folders(points, workdir)
  processes.check(points, places)
  try:
    code = processes.train_apart(
        points, places, [*train.config_files(words), *rest[1:]], jobs, screen)
  except Stopped as error:
    raise typer.Exit(fail(error, error.code)) from error
  lines, metric, folder = series.compared(places, workdir, screen)
  if lines:
    output.show_choice(lines, metric, folder, screen)
  raise typer.Exit(code)
