"""Recorded runs, read from their folders to be compared, finished or not."""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any, NamedTuple

from hmm_jax.algorithms import METHODS
from hmm_jax.experiment import config as configs
from hmm_jax.experiment import description, more_seeds
from hmm_jax.experiment.launch import as_json
from hmm_jax.experiment.run import finished, selected
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import words
from hmm_jax.report.comparison.numbers import Entry, OneSeed
from hmm_jax.types import InputError

# Runs that differ in these only are one run with more seeds, of one partition or of several.
SEEDS = ('seed', 'seeds', 'partition.seed')
RESULTS = 'comparison'  # Folder of figure and tables beside the runs of a grid.


class Recorded(NamedTuple):
  """One run as its folder has it."""

  name: str
  settings: Mapping[str, Any]  # {'local.lr': 0.1, ...}
  seeds: dict[tuple[int, int], OneSeed]
  criterion: str


def entries(folders: Sequence[str], say: Callable[[str], Any], *,
            references: bool = False) -> list[Entry]:
  """Reads runs; those that differ only in their seeds become one.

  Args:
    folders: of runs, or of a grid, which stands for its runs.
    say: told in one line about each folder that has no run.
    references: also what the runs were compared with, in their folders `references`.

  Raises:
    InputError: there is no run, or a file is damaged.
  """
  found = [path for folder in folders for path in _runs(folder, references)]
  paths = list({os.path.realpath(path): path for path in found}.values())
  read = {path: _read(path, name) for path, name in zip(paths, _names(paths))}
  runs = [run for run in read.values() if run]
  if not runs:
    raise InputError(f'got {", ".join(folders)}; expected folders of runs that have been evaluated')
  for path in (path for path, run in read.items() if not run):
    say(f'skipped {path}: there is no run in it that has been evaluated')
  return pooled(runs)


def pooled(runs: Sequence[Recorded]) -> list[Entry]:
  """Joins runs that differ only in their seeds, unless they share one, as copies of a run do."""
  groups: list[list[Recorded]] = []
  for run in runs:
    group = next((group for group in groups if _identity(group[0]) == _identity(run)
                  and not any(run.seeds.keys() & other.seeds.keys() for other in group)), None)
    if group is None:
      groups.append([run])
    else:
      group.append(run)
  names = _distinct([_common(group) for group in groups])
  return [Entry(name, _together([run.seeds for run in group]), group[0].criterion,
                group[0].settings['rounds'], description.dealt(group[0].settings))
          for name, group in zip(names, groups)]


def _runs(folder: str, references: bool) -> list[str]:
  """Returns the folders of runs that a folder stands for; itself if it has none."""
  below = lambda *names: sorted(
      entry.path for entry in os.scandir(os.path.join(folder, *names))
      if os.path.isfile(os.path.join(entry.path, 'config.json'))
  ) if os.path.isdir(os.path.join(folder, *names)) else []
  if os.path.isfile(os.path.join(folder, 'config.json')):
    return [folder, *(below('references') if references else [])]
  return below() or [folder]


def _read(folder: str, name: str) -> Recorded | None:
  """Reads a run; None if it has not been evaluated."""
  workdir = Workdir(more_seeds.whole(folder))
  saved = workdir.read_json('config.json') if os.path.isdir(folder) else None
  rows = workdir.read_metrics() if saved is not None else []
  if saved is None or not rows:
    return None
  # Not checked, so that a run of somebody's own method is read without it.
  settings = configs.flat(configs.get_config()) | configs.renamed(configs.flat(saved))
  summary = workdir.read_json('summary.json') or {}
  criterion = summary.get('criterion') or criterion_of(settings, rows)
  clients, seeds = workdir.read_table('clients'), {}
  numbers, kind = list(dict.fromkeys(row['seed'] for row in rows)), words.main(rows[0])
  for seed in numbers:
    own = [_row(row, len(numbers)) for row in rows if row['seed'] == seed]
    last = {row['client']: row for row in clients if row['seed'] == seed}.values()
    seeds[settings['partition.seed'], seed] = OneSeed(
        own, selected(own, criterion),
        [row[f'test/{kind}'] for row in last if f'test/{kind}' in row], finished(own))
  return Recorded(name, settings, seeds, criterion)


def criterion_of(settings: Mapping[str, Any], rows: Sequence[Mapping]) -> str:
  """Returns the validation metric that selects a round of a run that has no summary yet."""
  known = METHODS.get(settings['algorithm'])
  own = settings['fine_tune.epochs'] or (known is not None and known.kind == 'personal')
  view = 'clients' if own or 'global/validation/loss' not in rows[-1] else 'global'
  chosen = settings['selection']
  return f'{view}/validation/{words.main(rows[-1]) if chosen == "auto" else chosen}'


def _row(row: Mapping, seeds: int) -> dict:
  """Returns a row with the bytes of both ways; `seconds` of all seeds are shared equally."""
  return {**row, 'bytes': row['bytes_up'] + row['bytes_down'], 'seconds': row['seconds'] / seeds}


def _identity(run: Recorded) -> dict:
  return {key: as_json(value) for key, value in run.settings.items()
          if key not in {*SEEDS, *configs.COSMETIC, *configs.OF_ONE_CALL}}


def _together(runs: Sequence[dict]) -> dict:
  """Joins the seeds of several runs up to the round that all have reached."""
  joined = {key: seed for seeds in runs for key, seed in seeds.items()}
  last = min(seed.rows[-1]['round'] for seed in joined.values())
  if all(seed.rows[-1]['round'] == last for seed in joined.values()):
    return joined
  return {key: _until(seed, last) for key, seed in joined.items()}


def _until(seed: OneSeed, last: int) -> OneSeed:
  if seed.rows[-1]['round'] == last:
    return seed
  rows = [row for row in seed.rows if row['round'] <= last]
  return seed._replace(rows=rows, clients=(), finished=False)


def _names(paths: Sequence[str]) -> list[str]:
  """Returns the last parts of paths, as many as tell them apart."""
  parts = [os.path.abspath(path).split(os.sep) for path in paths]
  for count in range(1, max(map(len, parts), default=1)):
    names = ['/'.join(part[-count:]) for part in parts]
    if len(set(names)) == len(names):
      return names
  return list(paths)


def _common(group: Sequence[Recorded]) -> str:
  """Names runs of one group by what the names have in common, such as the point of a grid."""
  if len(group) == 1:
    return group[0].name
  parts = [run.name.split(',') for run in group]
  common = [part for part in parts[0] if all(part in other for other in parts)]
  return ','.join(common) or str(group[0].settings['algorithm'])


def _distinct(names: Sequence[str]) -> list[str]:
  """Numbers names that come again."""
  return [name if name not in names[:place] else f'{name} ({names[:place].count(name) + 1})'
          for place, name in enumerate(names)]
