"""More seeds for a run that exists: trained beside it, and then joined with it.

The new seeds are a run of their own in the folder `more_seeds`. When both have finished, `join`
writes what a run of all seeds would have left into the folder `joined`, which gets its name when
it is whole; `settle` then puts its content in the place of the run's, and removes it last. After
a kill the next call goes on from there, and `whole` names the folder that readers find whole.
"""

from collections.abc import Mapping, Sequence
import contextlib
import os
import shutil
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from hmm_jax.data import storage
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.archive import Archive
from hmm_jax.experiment.run import Progress, finished, summarize
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.types import Experiment, InputError

FOLDER = 'more_seeds'
JOINED = 'joined'


class Parts(NamedTuple):
  """A run of some seeds, and one of the seeds that are added to it."""

  had: ConfigDict
  added: ConfigDict
  beside: Workdir  # of the added ones

  @classmethod
  def of(cls, config: ConfigDict, workdir: Workdir) -> 'Parts | None':
    """Returns the parts of a run that is to have more seeds now; None for any other.

    Raises:
      InputError: seeds can't be added to it.
    """
    saved = workdir.read_json('config.json') if workdir.results() else None
    count = saved.get('seeds', configs.RUN['seeds'].default) if saved else config.seeds
    if count >= config.seeds:
      return None
    check(config, workdir, count)
    alone = {'references': '', 'variants': ()}
    return cls(
        configs.updated(config, {'seeds': count}, 'the seeds that are there'),
        configs.updated(config, alone | {'seed': config.seed + count,
                                         'seeds': config.seeds - count}, 'the seeds to be added'),
        Workdir(workdir.file(FOLDER)))


def check(config: ConfigDict, workdir: Workdir, count: int):
  """Checks that a run of `count` seeds can have those of a config.

  Raises:
    InputError: all seeds decide together when it ends, it was evaluated at other rounds than a
      run from the beginning would be, or there are several processes.
  """
  got = f'got seeds={config.seeds} for a run of {count} in {workdir.path}'
  if config.stop.patience:
    raise InputError(f'{got} with stop.patience={config.stop.patience}; expected seeds={count}, as '
                     'all seeds decide together when it stops, or another --workdir')
  if jax.process_count() > 1:
    raise InputError(f'{got}; expected one process, as the seeds are joined by one')
  odd = [row['round'] for row in workdir.read_metrics()
         if row['round'] % config.eval_every and row['round'] != config.rounds]
  if odd:
    raise InputError(f'{got}, which was evaluated in round {odd[0]}; expected evaluations every '
                     f'{config.eval_every} rounds, so that all seeds have the same')


def whole(folder: str) -> str:
  """Returns the folder in which a run is whole: another one while seeds are joined."""
  joined = os.path.join(folder, JOINED)
  return joined if os.path.isfile(os.path.join(joined, 'config.json')) else folder


def join(experiment: Experiment, settings: dict, workdir: Workdir, beside: Workdir,
         data: Mapping[str, str]):
  """Writes the run of all seeds beside its two parts, which have finished, and settles it.

  Args:
    experiment: of all seeds.
    settings: its config.
    workdir: of the seeds that were there; owned by this process.
    beside: of the added ones.
    data: digests of the data by name.
  """
  _take_initial_models(workdir, beside)
  parts, tables = (workdir, beside), ('clients', *experiment.algorithm.tables)
  rows = {name: _rows(name, parts, experiment.seeds) for name in ('metrics', *tables)}
  with storage.new_folder(workdir.file(JOINED)) as new:
    made = Workdir(new)
    archive = Archive(made, tables, experiment.keep, data)
    archive.begin(after=0)
    for number, states in _points(experiment, parts, rows['metrics']):
      for name in rows:
        done = [row for row in rows[name] if row['round'] <= number]
        if done:
          made.table(name).write(done, workdir.table(name).columns())
      archive.save(number, states, primary=True)
    made.write_json('summary.json', summarize(experiment, rows['metrics']) | _costs(parts))
    made.write_json('config.json', settings)
  settle(workdir)


def _take_initial_models(workdir, beside):
  """Copies the models that the added seeds began from; more of them are no harm to a run."""
  for row in {row['seed']: row for row in beside.read_metrics()}.values():
    begun = beside.initial(row['seed'])
    if os.path.isfile(begun):  # Runs of earlier releases keep none.
      with storage.replacing(workdir.initial(row['seed'])) as new:
        shutil.copyfile(begun, new)


def settle(workdir: Workdir):
  """Puts joined seeds in the place of a run; does nothing without any.

  Raises:
    SaveError: the file system refuses; the next call goes on.
  """
  joined = workdir.file(JOINED)
  with storage.saving(workdir.path):
    if whole(workdir.path) != joined:
      _remove(joined)  # Its content is in its place.
      return
    for name in ('manifests', 'checkpoints'):  # A checkpoint without a manifest is none.
      _remove(workdir.file(name))
    names = sorted(os.listdir(joined))
    for name in (name for name in names if os.path.isfile(os.path.join(joined, name))):
      with storage.replacing(workdir.file(name)) as new:
        shutil.copyfile(os.path.join(joined, name), new)
    for name in ('checkpoints', 'manifests'):
      with storage.new_folder(workdir.file(name)) as new:
        shutil.copytree(os.path.join(joined, name), new, dirs_exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # Without it, all plots are drawn again.
      os.remove(workdir.file('plots', 'partition.png'))
    _remove(workdir.file(FOLDER))
    # In one step, for a folder that is half removed must not be taken for a whole one.
    os.remove(os.path.join(joined, 'config.json'))
    _remove(joined)


def go_on(workdir: Workdir):
  """Settles what a kill has left of a join.

  Raises:
    InputError: it is to be done by several processes.
    SaveError: as of `settle`.
  """
  if not os.path.isdir(workdir.file(JOINED)):
    return
  if jax.process_count() > 1:
    raise InputError(f'got {workdir.path}, whose seeds are half joined; expected one process at '
                     'first, which goes on with that')
  with workdir.owned():
    settle(workdir)


def _rows(name: str, parts: Sequence[Workdir], seeds: Sequence[int]) -> list[dict]:
  """Returns the rows of a table of both parts, in the order of a run of all seeds."""
  metrics = parts[0].read_metrics()
  ends = sorted({row['round'] for row in metrics})
  twice = finished(metrics) and name in ('metrics', 'clients')
  groups = {}
  for row in (row for part in parts for row in part.read_table(name)):
    end = next(end for end in ends if end >= row['round'])
    groups.setdefault((end, row['seed']), []).append(row)
  joined = []
  for end in ends:
    times = 2 if twice and end == ends[-1] else 1
    for time in range(times):
      for seed in seeds:
        own = groups.get((end, seed), [])
        size = len(own) // times
        joined += own[time * size:(time + 1) * size]
  return _with_seconds(joined, parts) if name == 'metrics' else joined


def _with_seconds(rows: list[dict], parts: Sequence[Workdir]) -> list[dict]:
  """Replaces the seconds of rows by the sum over the parts, as if all seeds had run together."""
  seconds = [{row['round']: row['seconds'] for row in part.read_metrics()} for part in parts]
  return [row | {'seconds': round(sum(part[row['round']] for part in seconds), 4)}
          for row in rows]


def _points(experiment, parts, rows):
  """Yields the evaluated rounds that both parts have saved, and their states of all seeds."""
  archives = [Archive(part) for part in parts]
  counts = [len({row['seed'] for row in part.read_metrics()}) for part in parts]
  for archive in archives:
    archive.newest()  # Which compares the files with their digests.
  shapes = Trainer(experiment).shapes
  saved = [archive.rounds() for archive in archives]
  for number in sorted({row['round'] for row in rows}.intersection(*saved)):
    each = []
    for archive, count in zip(archives, counts):
      own = jax.tree.map(lambda x, n=count: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype),
                         shapes)
      each.append(archive.restore(
          number, Progress(own, own if experiment.keep_best else ())))
    yield number, jax.tree.map(lambda *x: np.concatenate(x), *each)


def _costs(parts: Sequence[Workdir]) -> dict:
  """Returns the seconds that both parts took."""
  summaries = [part.read_json('summary.json') or {} for part in parts]
  return {name: round(sum(summary.get(name, 0) for summary in summaries), 3)
          for name in ('wall_seconds', 'compile_seconds')}


def _remove(folder: str):
  if os.path.isdir(folder):
    shutil.rmtree(folder)
