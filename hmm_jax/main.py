"""Trains a federation: python -m hmm_jax.main [--config=FILE] [--config.key=value ...].

Run it again with the same settings to resume, or to see the summary of a finished
run. Bad input is one line on stderr and exit code 2; a diverged run exits with 1.
"""

from collections.abc import Sequence
import os
import traceback

from absl import app, flags
import jax
from ml_collections import ConfigDict, config_flags

from hmm_jax import build, devices, plots, report, variants
from hmm_jax import config as defaults
from hmm_jax.data.clients import describe, label_counts
from hmm_jax.log import Screen, Workdir, fail
from hmm_jax.run import finished, run
from hmm_jax.trainer import Diverged, Experiment
from hmm_jax.types import Algorithm, Federation, InputError

WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run lives; default runs/NAME.')

# Keys that say what is shown beside a run, and change nothing in it.
COSMETIC = {'name', 'references', 'variants'}


def main(argv: Sequence[str]):
  """Runs what the flags say; absl has parsed them."""
  if len(argv) > 1:
    raise InputError(f'got argument {argv[1]}; expected only --flags')
  config = defaults.complete(flags.FLAGS.config)
  defaults.check(config)
  devices.prepare(mapper=config.mapper, cohort=build.cohort(config))
  screen = Screen(silent=jax.process_index() > 0)
  workdir = Workdir(WORKDIR.value or default_workdir(config))
  others = {name: (changed, Workdir(workdir.file('references', name)))
            for name, changed in variants.comparisons(config).items()}
  for name, (changed, folder) in others.items():
    try:
      prepare(changed, folder)  # What is wrong with it shows before anything is trained.
    except InputError as error:
      raise InputError(f'{name}: {error}') from error

  runs = {config.name or config.algorithm: (config, workdir), **others}
  summaries, diverged = {}, []
  for name, (changed, folder) in runs.items():
    try:
      summaries[name] = train(changed, folder, screen)
    except Diverged as error:  # The others are still worth having.
      diverged.append(f'{name} {error}')
  if summaries:
    report.show(summaries, screen)
    report.compare_clients(
        {name: runs[name][1].read_table('clients') for name in summaries}, workdir)
  if diverged:
    raise Diverged('; '.join(diverged))


def train(config: ConfigDict, workdir: Workdir, screen: Screen) -> dict:
  """Trains one config in its workdir, or resumes it, or reads what it left.

  Raises:
    InputError: before anything is written.
  """
  made = prepare(config, workdir)
  if made is None:
    summary = workdir.read_json('summary.json')
    screen.say(f'{workdir.path} is finished: {summary["rounds"]} rounds')
    return summary

  experiment, federation, classes = made
  screen.table(f'{workdir.path}: {config.algorithm} on {config.dataset}', ['what', 'figures'],
               [*describe(federation, classes, source=config.server.source),
                *experiment.algorithm.facts])
  counts = label_counts(federation, classes)
  del made, federation  # The devices have what they need.

  summary = run(experiment, config.to_dict(), workdir, screen)
  if jax.process_index() == 0:
    plots.partition(counts, workdir.file('plots', 'partition.png'))
    plots.learning_curves(workdir.read_metrics(), workdir.file('plots'))
    clients = workdir.read_table('clients')
    plots.client_tables(clients, workdir.file('plots'))
    if anchors := workdir.read_table('anchors'):
      corrupted = {row['client'] for row in clients if row.get('corrupted')}
      plots.coefficients(anchors, workdir.file('plots', 'coefficients.png'), corrupted)
      plots.staleness(anchors, workdir.file('plots', 'staleness.png'))
    if searches := workdir.read_table('search'):
      plots.searches(searches, workdir.file('plots', 'search.png'))
  return summary


def prepare(config: ConfigDict, workdir: Workdir) -> tuple[Experiment, Federation, int] | None:
  """Builds what a run needs: experiment, federation, classes; None if it is finished.

  Raises:
    InputError: the config, the data or the workdir does not suit.
  """
  compare(config, workdir)
  summary = workdir.read_json('summary.json')
  if summary and summary.get('rounds_requested') == config.rounds:
    return None
  data = build.dataset(config)
  federation = build.federation(config, data)
  experiment = build.experiment(config, data, federation)
  check_extension(config, workdir, experiment.algorithm)
  return experiment, federation, data.classes


def check_extension(config: ConfigDict, workdir: Workdir, algorithm: Algorithm):
  """Checks that nothing has read the length of a run that is to have more rounds now.

  Raises:
    InputError: a schedule reads it, or the algorithm has finished.
  """
  saved, rows = workdir.read_json('config.json'), workdir.read_metrics()
  if not rows or saved['rounds'] == config.rounds:
    return
  if algorithm.length or finished(rows):
    why = 'its schedule reads its length' if algorithm.length else 'it has finished with a merge'
    raise InputError(f'got rounds={config.rounds} for a run of {saved["rounds"]}; {why}, expected '
                     'the same number or another --workdir')


def compare(config: ConfigDict, workdir: Workdir):
  """Checks that a workdir is new, or was made with this config or fewer rounds of it.

  Raises:
    InputError: the workdir can't be written, is not a run's, or is of another config.
  """
  workdir.check_writable()
  saved = workdir.read_json('config.json')
  results = workdir.results()
  if saved is None or not results:
    if results:
      raise InputError(f'got workdir={workdir.path} with {results[0]} but no config.json; '
                       'expected a new folder or one of a run')
    return
  # A key that is newer than the run has had its default.
  before = defaults.flat(defaults.get_config()) | defaults.flat(saved)
  now = defaults.flat(config)
  for key in sorted((before.keys() | now.keys()) - COSMETIC):
    was, wanted = (as_json(values.get(key)) for values in (before, now))
    if was != wanted and not (key == 'rounds' and wanted > was):
      raise InputError(f'got {key}={wanted} in {workdir.path}, made with {key}={was}; expected '
                       'the same settings (only rounds may grow) or another --workdir')


def as_json(value):
  return list(value) if isinstance(value, tuple) else value


def default_workdir(config: ConfigDict) -> str:
  data = os.path.basename(config.dataset.removeprefix('npz:').removeprefix('text:'))
  for suffix in ('.gz', '.xz', '.jsonl', '.npz'):
    data = data.removesuffix(suffix)
  return os.path.join('runs', f'{config.name or config.algorithm}-{data}')


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; a wrong one is an InputError like any other."""
  keys = tuple(defaults.flat(defaults.get_config()))
  for argument in argv[1:]:
    key = argument.lstrip('-').partition('=')[0]
    if key.startswith('config.') and key.removeprefix('config.') not in keys:
      raise InputError(f'got --{key}; expected a key of hmm_jax/config.py'
                       + defaults.suggestion(key.removeprefix('config.'), keys))
  try:
    # Defined here, since ml_collections reads the file and the values at once.
    config_flags.DEFINE_config_file(
        'config', defaults.__file__, 'File with get_config; hmm_jax/config.py has every key.')
    rest = flags.FLAGS(argv)
    flags.FLAGS.config.keys()  # A file that fails to load says so only when it is used.
    return rest
  except Exception as error:  # Whatever the file raises, or a value of the wrong type.
    text = str(error).strip()
    cause = text.splitlines()[-1] if 'Traceback' in text else f'{type(error).__name__}: {text}'
    raise InputError(cause.removeprefix('hmm_jax.types.InputError: ')) from error


def entry():
  """Runs `main`; turns bad input into one line and an exit code."""
  try:
    app.run(main, flags_parser=parse)
  except InputError as error:
    devices.leave(fail(error, 2))
  except Diverged as error:  # The same in every process.
    devices.leave(fail(error, 1) if jax.process_index() == 0 else 1)
  except Exception:
    if not jax.distributed.is_initialized():
      raise
    traceback.print_exc()
    devices.leave(1)


if __name__ == '__main__':
  entry()
