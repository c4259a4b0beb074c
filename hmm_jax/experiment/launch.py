"""One run by its config: trained, resumed, or read if it has finished."""

import contextlib
import os

import jax
from ml_collections import ConfigDict
import numpy as np

from hmm_jax.data.sources import SOURCES
from hmm_jax.experiment import build, federation, locate, more_seeds, pages, plots, tracking
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.devices import in_32_bits
from hmm_jax.experiment.more_seeds import Parts
from hmm_jax.experiment.run import finished, run
from hmm_jax.experiment.saved import Run
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import trackers
from hmm_jax.report.screen import Screen
from hmm_jax.types import Algorithm, Dataset, Experiment, Federation, InputError, SaveError


def train(config: ConfigDict, workdir: Workdir, screen: Screen,
          data: Dataset | None = None) -> dict:
  """Trains one config in its workdir, or resumes it; a finished run is only read.

  Args:
    config: all settings.
    workdir: of the run.
    screen: shows what is done.
    data: in place of the data set that the config names.

  Returns:
    The summary.

  Raises:
    InputError: before anything is written.
    SaveError: a result can't be saved.
    Diverged, Stopped: as in `run`.
  """
  made = prepare(config, workdir, data)
  if parts := Parts.of(config, workdir):
    del made
    return _train_more(config, parts, workdir, screen, data)
  leads = jax.process_index() == 0
  if made is None:
    summary = read_summary(workdir) or {}
    screen.say(f'{workdir.path} is finished: {summary["rounds"]} rounds')
    if leads and config.plots and not pages.are_there(workdir):
      try:
        if plots.read_partition(workdir) is None:
          plots.write_partition(workdir, *_partition(config, data))
        pages.of_run(workdir)
      except SaveError as error:  # The run is saved, if only on a disk that can't be written.
        screen.say(str(error))
    if leads:
      tracking.catch_up(config, workdir, screen)
    return summary

  experiment, federated, loaded = made
  ids, counts = np.asarray(federated.clients.id), federation.counts(config, federated, loaded)
  screen.table(f'{workdir.path}: {config.algorithm} on {config.dataset}', ['what', 'figures'],
               [*federation.described(config, federated, loaded),
                *experiment.algorithm.facts])
  digests = _digests(config, federated, experiment)
  settings = _kept(config)
  del made, federated, loaded  # The devices have what they need.

  with workdir.owned() if leads else contextlib.nullcontext():
    compare(config, workdir)  # Again, for another process may have been quicker.
    check_extension(config, workdir, experiment.algorithm)
    if leads:
      plots.write_partition(workdir, ids, counts, experiment.client_names)
    summary = run(experiment, settings, workdir, screen, data=digests,
                  previous=config.resume == 'previous',
                  show=plots.Painter(lambda: _draw(config, workdir)))
    if leads:
      _draw(config, workdir)
  return summary


def _draw(config: ConfigDict, workdir: Workdir):
  if config.plots:
    pages.of_run(workdir)


def _train_more(config: ConfigDict, parts: Parts, workdir: Workdir, screen: Screen,
                data: Dataset | None) -> dict:
  """Finishes the seeds that are there, trains those that are added, and joins them."""
  train(parts.had, workdir, screen, data)
  train(parts.added, parts.beside, screen, data)
  experiment, federated, _ = _built(config, data)
  with workdir.owned():
    if Parts.of(config, workdir):  # Another process may have been quicker.
      more_seeds.join(experiment, _kept(config), workdir, parts.beside,
                      _digests(config, federated, experiment))
    _draw(config, workdir)
  tracking.catch_up(config, workdir, screen)
  screen.say(f'{workdir.path} has {config.seeds} seeds now')
  return read_summary(workdir) or {}


def _digests(config, federated, experiment) -> dict[str, str]:
  """Returns the digests of all that a run is trained on."""
  return {**federation.fingerprint(config, federated), **experiment.given}


def _kept(config: ConfigDict) -> dict:
  """Returns the settings that config.json keeps."""
  return {key: value for key, value in config.to_dict().items() if key not in configs.OF_ONE_CALL}


def _partition(config, data):
  """Returns the ids of a run's clients, their training examples by class, [K, C], and names."""
  data = federation.dataset(config, data)
  federated = federation.federation(config, data)
  return (np.asarray(federated.clients.id), federation.counts(config, federated, data),
          federation.names(federated, data))


def read_summary(workdir: Workdir) -> dict | None:
  """Returns the summary of a run; None without one; InputError if it is damaged."""
  return workdir.read_json('summary.json', (
      'rounds', 'rounds_requested', 'seeds', 'last', 'selected_on_validation', 'train_seconds',
      'compile_seconds', 'peak_memory_bytes', 'device'))


@in_32_bits
def run_config(config: ConfigDict, workdir: str, *, silent: bool = False,
               data: Dataset | None = None) -> Run:
  """Trains a config in a folder, or resumes it; the library's form of the command.

  Args:
    config: of `hmm_jax.config(...)`.
    workdir: folder of the run, made if need be.
    silent: print nothing.
    data: of `hmm_jax.dataset(...)`, in place of the data set that the config names.

  Raises:
    InputError: before anything is written.
    Diverged: a round turned non-finite; what was saved stays.
  """
  if not isinstance(data, Dataset | None):
    raise InputError(f'got data of type {type(data).__name__}; expected a set of '
                     'hmm_jax.dataset(...)')
  values = configs.flat(config) | ({} if data is None else {'dataset': f'given:{data.name}'})
  train(configs.configure(values), Workdir(workdir), Screen(silent=silent), data)
  return Run.load(workdir)


def prepare(config: ConfigDict, workdir: Workdir,
            data: Dataset | None = None) -> tuple[Experiment, Federation, Dataset] | None:
  """Builds what a run needs; None if it is finished. The data set is without its inputs.

  Raises:
    InputError: the config, the data or the workdir does not suit.
  """
  more_seeds.go_on(workdir)
  compare(config, workdir)
  parts, summary = Parts.of(config, workdir), read_summary(workdir)
  if parts:  # What is wrong with one shows before the other is trained.
    prepare(parts.had, workdir, data)
    prepare(parts.added, parts.beside, data)
  elif summary and summary['rounds_requested'] == config.rounds:
    return None
  workdir.check_writable()
  for name in trackers.named(config.track):
    trackers.opener(name)  # What it lacks shows before anything is written.
  made = _built(config, data)
  check_extension(config, workdir, made[0].algorithm)
  return made


def _built(config, data) -> tuple[Experiment, Federation, Dataset]:
  data = federation.dataset(config, data)
  federated = federation.federation(config, data)
  given = locate.tensors(config.init) if config.init else None
  experiment = build.experiment(config, data, federated, given=given)
  return experiment, federated, data._replace(x_train=(), x_test=())


def check_extension(config: ConfigDict, workdir: Workdir, algorithm: Algorithm):
  """Checks that nothing has read the length of a run that is to have more rounds now.

  Raises:
    InputError: a schedule reads it, or the algorithm has finished.
  """
  saved, rows = workdir.read_json('config.json'), workdir.read_metrics()
  if not rows or not saved or saved['rounds'] == config.rounds:
    return
  if algorithm.length or finished(rows):
    why = 'its schedule reads its length' if algorithm.length else 'it has finished with a merge'
    raise InputError(f'got rounds={config.rounds} for a run of {saved["rounds"]}; {why}, expected '
                     'the same number or another --workdir')


def compare(config: ConfigDict, workdir: Workdir):
  """Checks that a workdir is new, or was made with this config, or fewer rounds or seeds of it.

  How often a run is evaluated may change, unless evaluations decide what it keeps or when it ends.

  Raises:
    InputError: the workdir is not a run's, or is of another config.
  """
  saved = workdir.read_json('config.json')
  results = workdir.results()
  if saved is None or not results:
    if results:
      raise InputError(f'got workdir={workdir.path} with {results[0]} but no config.json; '
                       'expected a new folder or one of a run')
    return
  # A key that is newer than the run has had its default.
  before = configs.flat(configs.get_config()) | configs.renamed(configs.flat(saved))
  now = configs.flat(config)
  for key in sorted((before.keys() | now.keys()) - configs.COSMETIC - configs.OF_ONE_CALL):
    was, wanted = (as_json(configs.placed(key, values.get(key))) for values in (before, now))
    if key == 'selection':  # Earlier releases had no `auto`.
      was, wanted = (configs.selecting(value, config.task) for value in (was, wanted))
    grows = key in ('rounds', 'seeds') and type(was) is int and wanted > was
    decides = config.keep_best or config.stop.patience
    if was != wanted and not grows and (key != 'eval_every' or decides):
      why = 'keep_best and stop.patience go by evaluations' if key == 'eval_every' else (
          'only rounds and seeds may grow')
      raise InputError(f'got {key}={wanted} in {workdir.path}, made with {key}={was}; expected '
                       f'the same settings ({why}) or another --workdir')


def as_json(value):
  return list(value) if isinstance(value, tuple) else value


def default_workdir(config: ConfigDict) -> str:
  """Returns runs/NAME-DATA."""
  source, _, path = config.dataset.partition(':')
  data = os.path.basename((path if path and source in SOURCES else source).rstrip('/'))
  for suffix in ('.gz', '.xz', '.jsonl', '.json', '.npz', '.csv', '.parquet', '.py'):
    data = data.removesuffix(suffix)
  return os.path.join('runs', f'{config.name or configs.method(config).name}-{data}')
