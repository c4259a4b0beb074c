"""Prints the recorded runs of the studies, and records more of them.

  python experiments/results.py [STUDY [RUN]]
  python experiments/results.py --record=FOLDER STUDY RUN

Without a study come the names of all, with one the tables that `python -m hmm_jax.main` printed at
the end of its runs, and those of experiments/ladder.py. --record adds the finished run in FOLDER,
its references and its ablation to experiments/results/STUDY.json, or replaces RUN there.

The file holds of each run its config (what differs from that of the file's first run), its costs
and every row of metrics.csv, a line a metric: a list a seed (one if all are equal), a value an
evaluation. Values in float32 have as few digits as give the same number back; the tables are
computed from them. Of Feddle's anchors.csv, STUDY/arrivals.json holds what coefficients.py reads.
"""

from collections.abc import Iterable
import json
import pathlib
import sys

from absl import app, flags
import numpy as np

from hmm_jax.experiment import comparisons
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.run import figures, over_seeds
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import tables
from hmm_jax.report.screen import Screen, fail
from hmm_jax.types import InputError

STUDIES = pathlib.Path(__file__).parent
FOLDER = STUDIES / 'results'
ARRIVALS = 'arrivals.json'
LINE = 120  # columns; a dict that fits is not broken into lines
CRITERION = 'global/validation/accuracy'  # of runs whose summary does not say

RECORD = flags.DEFINE_string('record', None, 'Folder of a finished run to add.')


def main(argv):
  names = argv[1:]
  if RECORD.value is not None:
    if len(names) != 2:
      raise InputError(f'got {" ".join(names) or "no name"} to record by; expected STUDY RUN')
    add(*names, RECORD.value)
  elif len(names) > 2:
    raise InputError(f'got argument {names[2]}; expected STUDY RUN or less')
  elif names:
    show(*names)
  else:
    for study in studies():
      print(f'{study}: {", ".join(load(study))}')


def show(study: str, run: str = ''):
  """Prints the tables of a run, or of all runs of a study."""
  runs, screen = load(study), Screen()
  if run and run not in runs:
    raise InputError(f'got run {run}; expected one of {", ".join(runs)}')
  for name in [run] if run else runs:
    screen.say(f'{study} {name}')
    tables.show({other: summary(kept) for other, kept in runs[name].items()}, screen)
    first = next(iter(runs[name].values()))
    if variants := ladder(first):
      tables.show_arms(f'{study} {name}', variants, first['costs']['seeds'], screen)


def studies() -> list[str]:
  return sorted(path.stem for path in FOLDER.glob('*.json'))


def load(study: str) -> dict[str, dict[str, dict]]:
  """Reads a study's records by run and name: of the run itself, then of those beside it."""
  if study not in studies():
    raise InputError(f'got study {study}; expected one of {", ".join(studies())}')
  content = json.loads((FOLDER / f'{study}.json').read_text())
  for kept in _records(content['runs']):
    kept['config'] = content['config'] | kept['config']
  return content['runs']


def add(study: str, run: str, folder: str):
  """Adds a finished run to a study's file, or replaces it there."""
  known = sorted(path.stem for path in STUDIES.glob('*.py') if 'get_config' in path.read_text())
  if study not in known:
    raise InputError(f'got study {study}; expected one of {", ".join(known)}')
  runs = (load(study) if study in studies() else {}) | {run: record(folder)}
  first = next(_records(runs))['config']
  for kept in _records(runs):
    kept['config'] = dict(item for item in kept['config'].items() if item not in first.items())
  _write(FOLDER / f'{study}.json', {'config': first, 'runs': runs})
  if made := arrivals(Workdir(folder)):
    _write(FOLDER / study / ARRIVALS, recorded_arrivals(study) | {run: made})


def record(folder: str) -> dict[str, dict]:
  """Returns the records of a finished run and of its references, by name."""
  workdir = Workdir(folder)
  first, config = _record(workdir), configs.complete(workdir.read_json('config.json'))
  if made := workdir.read_json('ladder.json'):
    first['ladder'] = {'arms': list(made['arms']), **pack([
        [{metric: value['seeds'][s] for metric, value in variant.items()}
         for variant in made['arms'].values()] for s in range(config.seeds)])}
  beside = {path.parent.name: Workdir(str(path.parent)) for path in sorted(
      pathlib.Path(folder).glob('references/*/summary.json'))}
  # In the order of the config, which may lack some that were added to a finished run.
  order = [name for name in comparisons.comparisons(config) if name in beside]
  return {config.name or config.algorithm: first} | {
      name: _record(beside[name]) for name in dict.fromkeys([*order, *beside])}


def summary(kept: dict) -> dict:
  """Returns a recorded run's summary.json."""
  seeds, criterion = kept['costs']['seeds'], kept['costs']['criterion']
  rows = [row for one in unpack(kept['metrics'], len(seeds)) for row in one]
  return figures(rows, seeds, criterion) | kept['costs']


def ladder(kept: dict) -> dict[str, dict]:
  """Returns the variants in a recorded run's ladder.json, if it has one."""
  if 'ladder' not in kept:
    return {}
  grid = unpack(kept['ladder'], len(kept['costs']['seeds']))
  return dict(zip(kept['ladder']['arms'], map(over_seeds, zip(*grid))))


def arrivals(workdir: Workdir) -> dict:
  """Returns a run's corrupted clients, and the coefficients of updates as they arrive."""
  rows = [row for row in workdir.read_table('anchors') if row['age'] == 0]
  if not rows:
    return {}
  seeds = sorted({row['seed'] for row in rows})
  bad = {row['client'] for row in workdir.read_table('clients') if row.get('corrupted')}
  return {'corrupted': sorted(bad), 'seeds': seeds, **pack([
      [{name: row[name] for name in ('client', 'coefficient', 'average')}
       for row in rows if row['seed'] == seed] for seed in seeds])}


def recorded_arrivals(study: str = 'feddle') -> dict[str, dict]:
  path = FOLDER / study / ARRIVALS
  return json.loads(path.read_text()) if path.exists() else {}


def pack(grid: list[list[dict]]) -> dict[str, dict]:
  """Returns the rows of each seed as columns; what a row lacks is None."""
  columns = {'float32': {}, 'exact': {}}
  for name in dict.fromkeys(name for rows in grid for row in rows for name in row):
    values = [[row.get(name) for row in rows] for rows in grid]
    if all(one == values[0] for one in values):
      values = values[:1]
    short = [[float(str(np.float32(v))) if isinstance(v, float) else v for v in one]
             for one in values]
    single = values != short and _same(values, _widened(short))
    columns['float32' if single else 'exact'][name] = short if single else values
  return columns


def unpack(columns: dict, seeds: int) -> list[list[dict]]:
  """Returns the rows of each seed that were packed."""
  read = {name: _widened(values) for name, values in columns['float32'].items()}
  read = {name: values * (seeds if len(values) == 1 else 1)
          for name, values in (read | columns['exact']).items()}
  return [[{name: v for name, v in zip(read, row) if v is not None} for row in zip(*one)]
          for one in zip(*read.values())]


def _record(workdir: Workdir) -> dict:
  """Returns config, costs and metrics of one finished run."""
  config, said = workdir.read_json('config.json'), workdir.read_json('summary.json')
  rows = workdir.read_metrics()
  if not (config and said and rows):
    raise InputError(f'got {workdir.path}; expected the folder of a finished run')
  said = {'criterion': CRITERION} | said
  computed = figures(rows, said['seeds'], said['criterion'])
  if not _same(computed, {key: said.get(key) for key in computed}):
    raise InputError(f'got {workdir.file("summary.json")}; expected what metrics.csv says')
  # A key that is newer than the run has had its default.
  config = configs.flat(configs.get_config()) | configs.renamed(configs.flat(config))
  return {
      'config': {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()},
      'costs': {key: v for key, v in said.items() if key == 'seeds' or key not in computed},
      'metrics': pack([[row for row in rows if row['seed'] == seed] for seed in said['seeds']])}


def _records(runs: dict[str, dict[str, dict]]) -> Iterable[dict]:
  return (kept for named in runs.values() for kept in named.values())


def _widened(values: list[list]) -> list[list]:
  return [[float(np.float32(v)) if isinstance(v, float) else v for v in one] for one in values]


def _same(a, b) -> bool:
  return json.dumps(a) == json.dumps(b)  # NaN equals NaN there.


def _write(path: pathlib.Path, content: dict):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(_layout(content) + '\n')


def _layout(value, indent: str = '') -> str:
  """Writes JSON with every list, and every dict that fits, on one line."""
  line = json.dumps(value, ensure_ascii=False, separators=(',', ': '))
  if not isinstance(value, dict) or len(indent + line) <= LINE:
    return line
  items = [f'{indent} {json.dumps(key)}: {_layout(inner, indent + " ")}'
           for key, inner in value.items()]
  return '{\n' + ',\n'.join(items) + f'\n{indent}}}'


if __name__ == '__main__':
  try:
    app.run(main, flags_parser=flags.FLAGS)
  except (InputError, flags.Error) as error:
    sys.exit(fail(error, 2))
