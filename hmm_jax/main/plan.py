"""hmm_jax plan: what a run will do and cost, without training it."""

import os
from typing import Annotated

import typer


def plan(context: typer.Context, measure: Annotated[bool, typer.Option(
    '--measure', help='Also train two rounds, for the time that all will take.')] = False):
  """Say what a run will do and cost, without training it.

  Takes the flags of `hmm_jax run`, checks all of them, and writes no file: clients, examples,
  parameters, bytes, steps, memory, what a folder would go on from, and the settings that differ
  from the defaults.
  """
  from functools import partial

  from hmm_jax.main import train
  train.entry(['hmm_jax plan', *context.args], partial(_show, measure),
              partial(_show_all, measure))


def _show_all(measure, points, argv):
  """Prints the plan of each point of a grid."""
  from hmm_jax.experiment import grid
  from hmm_jax.main import train
  folder = train.WORKDIR.value or grid.workdir(points)
  for point in points:
    _show(measure, point.config, argv, os.path.join(folder, point.name))


def _show(measure, config, argv, folder=None):
  """Prints the plan of a run, and of each that it is compared with."""
  from hmm_jax.experiment import devices, launch
  from hmm_jax.experiment import plan as plans
  from hmm_jax.experiment.workdir import Workdir
  from hmm_jax.main import train
  from hmm_jax.report.screen import Screen
  from hmm_jax.types import InputError
  if len(argv) > 1:
    raise InputError(f'got argument {argv[1]}; expected only --flags')
  devices.prepare_from_flags(config)
  screen = Screen()
  workdir = Workdir(folder or train.WORKDIR.value or launch.default_workdir(config))
  planned = {folder.path: (changed, plans.plan(changed, folder, measure=measure))
             for changed, folder in plans.runs(config, workdir)}
  for path, (changed, rows) in planned.items():
    screen.table(f'{path}: {changed.algorithm} on {changed.dataset}', ['what', 'figures'], rows)
    if changes := plans.changes(changed):
      screen.table('settings that differ from the defaults', ['setting', 'value', 'default'],
                   changes)
