"""Trains a federation: hmm_jax run [--config=FILE] [--config.key=value ...].

A key with several values, `--config.local.lr=0.01,0.1`, makes a run of each, and a comparison.
Run it again with the same settings to resume, or to see the summary of a finished
run. Bad input is one line on stderr and exit code 2; a run that diverges or can't be
saved exits with 1, and one that a signal has stopped with 128 + its number.
"""

from collections.abc import Callable, Sequence
from functools import partial
import math
import re
import signal
import traceback

from absl import app, flags
import jax
from ml_collections import ConfigDict

from hmm_jax.experiment import comparisons, devices, federation, grid, pages, series
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.launch import default_workdir, prepare, train
from hmm_jax.experiment.stopping import Stopped
from hmm_jax.experiment.trainer import Diverged
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import tables
from hmm_jax.report.screen import Screen, fail
from hmm_jax.types import InputError, SaveError

TABLES = flags.DEFINE_enum(
    'tables', 'short', ['short', 'all'],
    'At the end: the test accuracies, or also all metrics and every seed.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run lives; default runs/NAME.')


def main(config: ConfigDict, argv: Sequence[str]):
  """Trains a config, and what it is compared with, where the flags say."""
  if len(argv) > 1:
    raise InputError(f'got argument {argv[1]}; expected only --flags')
  configs.check(config)
  devices.prepare_from_flags(config)
  screen = Screen(silent=jax.process_index() > 0)
  workdir = Workdir(WORKDIR.value or default_workdir(config))
  others = {name: (changed, Workdir(workdir.file('references', name)))
            for name, changed in comparisons.comparisons(config).items()}
  for name, (changed, folder) in others.items():
    try:
      prepare(changed, folder)  # What is wrong with it shows before anything is trained.
    except InputError as error:
      raise InputError(f'{name}: {error}') from error

  runs = {config.name or configs.method(config).name: (config, workdir), **others}
  summaries, diverged = {}, []
  for name, (changed, folder) in runs.items():
    try:
      summaries[name] = train(changed, folder, screen)
    except Diverged as error:  # The others are still worth having.
      diverged.append(f'{name} {error}')
  if summaries:
    if others and config.plots and jax.process_index() == 0:
      try:
        pages.of_all(workdir)
      except SaveError as error:  # A finished run may lie on a disk that can't be written.
        screen.say(str(error))
    {'short': tables.brief, 'all': tables.show}[TABLES.value](summaries, screen)
  if diverged:
    raise Diverged('; '.join(diverged))


def main_grid(points: Sequence[grid.Point], argv: Sequence[str]):
  """Trains the points of a grid, and compares them."""
  if len(argv) > 1:
    raise InputError(f'got argument {argv[1]}; expected only --flags')
  workdir = WORKDIR.value or grid.workdir(points)
  series.folders(points, workdir)
  # One process has devices for the point that shares them among most clients.
  devices.prepare_from_flags(max((point.config for point in points), key=lambda config: (
      config.mapper not in ('map', 'vmap'), federation.cohort(config) or math.inf)))
  series.train_all(points, workdir, Screen(silent=jax.process_index() > 0))


def read_command(argv: Sequence[str]) -> tuple[ConfigDict, list[str]]:
  """Reads `--config=FILE` and every `--config.key=value`; returns the config and other arguments.

  Raises:
    InputError: a file, a key or a value that is impossible.
  """
  base, changes, rest = read_changes(argv)
  return configs.from_texts(base, changes, 'the command'), rest


def read_changes(argv: Sequence[str]) -> tuple[ConfigDict, dict[str, str], list[str]]:
  """Returns the config of `--config=FILE`, {key: text} of what changes, and other arguments.

  Raises:
    InputError: a file that is impossible, or a key without a value.
  """
  rest, changes, base = [argv[0]], {}, configs.get_config()
  for argument in _joined(argv[1:]):
    name, found, value = argument.partition('=')
    key = name.lstrip('-')
    if key == 'config':
      base = configs.complete(configs.read(value))
    elif key.startswith('config.') and name.startswith('-'):
      if not found:
        raise InputError(f'got {name} without a value; expected {name}=VALUE')
      changes[key.removeprefix('config.')] = value
    else:
      rest.append(argument)
  return base, changes, rest


def config_files(argv: Sequence[str]) -> list[str]:
  """Returns the words of a command that name a config file."""
  return [word for word in _joined(argv) if re.match('--?config=', word)]


def _joined(argv):
  """Writes `--config.key value` as `--config.key=value`."""
  joined = []
  for argument in argv:
    waits = joined and re.fullmatch(r'--?config(\.[\w.]+)?', joined[-1])
    if waits and not argument.startswith('--'):
      joined[-1] += f'={argument}'
    else:
      joined.append(argument)
  return joined


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the other flags; a wrong one is an InputError like any other."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    raise InputError(str(error)) from error


def entry(argv: Sequence[str], one: Callable[[ConfigDict, Sequence[str]], None] = main,
          several: Callable[[Sequence[grid.Point], Sequence[str]], None] = main_grid):
  """Runs an action on a config, or another on those of a grid, as a command.

  Bad input, a failure or a signal are one line and an exit code.
  """
  try:
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    base, changes, argv = read_changes(argv)
    points = grid.points(base, changes)
    job = partial(one, points[0].config) if len(points) == 1 else partial(several, points)
    app.run(job, argv=argv, flags_parser=parse_flags)
  except InputError as error:
    devices.leave(fail(error, 2))
  except SaveError as error:
    devices.leave(fail(error, 1), at_once=True)
  except (Diverged, Stopped) as error:  # In a mesh, the same in every process.
    code = getattr(error, 'code', 1)
    devices.leave(fail(error, code) if jax.process_index() == 0 else code)
  except KeyboardInterrupt:
    devices.leave(fail('interrupted', 130))
  except Exception as error:
    line = unmet(error)
    if not line and not jax.distributed.is_initialized():
      raise
    if line:
      fail(line, 1)
    else:
      traceback.print_exc()
    devices.leave(1)


def unmet(error: Exception) -> str:
  """Says in a line what a machine or another process did not give; '' for any other error."""
  text = str(error).partition('\n')[0]
  if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text or 'Out of memory' in text:
    return f'got too little memory: {text}; expected a smaller model, batch or chunk'
  if isinstance(error, jax.errors.JaxRuntimeError) and jax.distributed.is_initialized():
    return f'lost another process: {text}'
  return ''
