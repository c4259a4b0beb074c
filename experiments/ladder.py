"""DMM's ladder: what does each of its steps add, and what do other merges of the same models give?

  python experiments/ladder.py --workdir=RUN [--arms=core,noise]

RUN is the folder of a finished run of experiments/dmm.py, merged once. Its clients are trained
already: their models are read from its checkpoint and merged anew, arm by arm,

  core, buffers        the core's merge, without and with all models' statistics
  noise, inverted      distilled on N(0, 1), the control, and on inverted inputs: DMM
  real                 distilled on as many of the clients' rows: the ceiling
  each, everybody      each model's statistics inverted, a batch each; all models as teachers
  average, ties, cat   averaged by rows, and by two operators that need no data for statistics
  recalibrated         the average, its statistics estimated on the clients' validation rows
  matched, pleas       Git Re-Basin and PLeaS: units in one order, statistics estimated likewise
  loose, strict        on request: `inverted` with pairs of the core at a cosine of 0, or of 0.2

with the keys that the run had itself; an arm that changes nothing is the run's own merge. RUN gets
ladder.json, from which arms that are there already are printed again, and plots/inverted.png: of
the first batch that is inverted for the first seed, above as many rows of its clients.
"""

import sys

from absl import app, flags
from hmm_jax.methods import dmm
from hmm_jax.methods.setup import Setup
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from hmm_jax import main, tree
from hmm_jax.client import mappers
from hmm_jax.experiment import build, devices
from hmm_jax.experiment import config as defaults
from hmm_jax.experiment.checkpoint import Checkpoints
from hmm_jax.experiment.run import Progress, finished, over_seeds
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import plots, tables
from hmm_jax.report.screen import Screen
from hmm_jax.server import pseudo_data
from hmm_jax.types import InputError

ESTIMATED = {'algorithm': 'merging', 'merging.statistics': 'recalibrated'}
ARMS = {
    'core': {'dmm.inputs': 'none', 'dmm.buffers': 'core'},
    'buffers': {'dmm.inputs': 'none'},
    'noise': {'dmm.inputs': 'noise'},
    'inverted': {'dmm.inputs': 'inverted'},
    'real': {'dmm.inputs': 'real'},
    'each': {'dmm.whose': 'each', 'dmm.batch': 64, 'dmm.batches': 1},
    'everybody': {'dmm.teachers': 'everybody'},
    'average': {'algorithm': 'merging'},
    'ties': {'algorithm': 'merging', 'merging.method': 'ties'},
    'cat': {'algorithm': 'merging', 'merging.method': 'cat'},
    'recalibrated': ESTIMATED,
    'matched': {**ESTIMATED, 'merging.match': 'weights'},
    'pleas': {**ESTIMATED, 'merging.method': 'pleas'},
    'loose': {'dmm.threshold': '0.0'},
    'strict': {'dmm.threshold': '0.2'},
}
ON_REQUEST = {'loose', 'strict'}
NEED_WIRING = {'matched', 'pleas'}  # Not known where two branches meet.
GRID = 32  # images of each kind in the picture
ACCURACY = 'global/test/accuracy'

CHOSEN = flags.DEFINE_list(
    'arms', [name for name in ARMS if name not in ON_REQUEST], 'Which arms.')
flags.mark_flag_as_required('workdir')  # Of main.


def study(argv):
  if len(argv) > 1:
    raise InputError(f'got argument {argv[1]}; expected only --flags')
  workdir = Workdir(main.WORKDIR.value)
  settings, rows = workdir.read_json('config.json'), workdir.read_metrics()
  config = defaults.complete(ConfigDict(settings or {}))
  if config.algorithm != 'dmm' or not rows or not finished(rows) or config.one_shot.every:
    raise InputError(f'got workdir={workdir.path}; expected that of a finished run of dmm that was '
                     'merged once')
  workdir.check_writable()
  names = chosen(config)
  devices.prepare(mapper=config.mapper, cohort=0)
  made = workdir.read_json('ladder.json') or {'rounds': config.rounds, 'arms': {}}
  if missing := [name for name in names if name not in made['arms']]:
    extend(workdir, config, made, missing)
  seeds = range(config.seed, config.seed + config.seeds)
  tables.show_arms(workdir.path, {name: made['arms'][name] for name in names}, seeds, Screen())


def chosen(config):
  """Returns the arms that were asked for, without those that the network does not allow."""
  unknown = set(CHOSEN.value) - ARMS.keys()
  if unknown or not CHOSEN.value:
    raise InputError(f'got arms={",".join(sorted(unknown))}; expected names among '
                     f'{", ".join(ARMS)}')
  branches = config.dataset == 'crisismmd' and config.crisismmd.modalities == 'both'
  return [name for name in ARMS
          if name in CHOSEN.value and not (branches and name in NEED_WIRING)]


def extend(workdir, config, made, names):
  """Merges the run's clients by more arms, and draws what was inverted."""
  if 'checkpoints' not in workdir.results():
    raise InputError(f'got workdir={workdir.path} without a checkpoint; expected the run\'s, whose '
                     f'clients are merged, for the arms {", ".join(names)}')
  config = defaults.updated(config, {'variants': (), 'references': ''}, 'the run')
  data = build.dataset(config)
  federation = build.federation(config, data)
  trainer = Trainer(build.experiment(config, data, federation))
  saved = Checkpoints(workdir.file('checkpoints')).restore(
      made['rounds'], Progress(trainer.shapes, trainer.shapes if config.keep_best else ()))
  stacked, own = trainer.place(saved.states.stacked), workdir.read_metrics()[-config.seeds:]
  for name in names:
    changed, rows = defaults.updated(config, ARMS[name], name), own
    if changed != config:
      _, rows = merged(build.experiment(changed, data, federation), stacked, made['rounds'])
    made['arms'][name] = over_seeds(rows)
    made['arms'] = {arm: made['arms'][arm] for arm in ARMS if arm in made['arms']}
    workdir.write_json('ladder.json', made)
    Screen().say(f'{name}: test accuracy {report.spread(made["arms"][name][ACCURACY])}')
  if all(leaf.ndim == 4 for leaf in jax.tree.leaves(federation.examples.x)):
    picture(workdir, config, data, federation, stacked, made['rounds'])


def merged(experiment, stacked, rounds):
  """Returns the states after the experiment's merge of these models, and its metrics by seed."""
  trainer = Trainer(experiment)
  states = trainer.initial()
  states = states._replace(round=jnp.full_like(states.round, rounds), stacked=stacked)
  states, _ = trainer.finish(states)
  rows = []
  for s, seed in enumerate(experiment.seeds):
    facts = {name: float(value) for name, value in trainer.gauges(states, s).items()}
    rows.append({'seed': seed, **facts,
                 **experiment.evaluate(trainer.views(states, s)).metrics})
  return states, rows


def picture(workdir, config, data, federation, stacked, rounds):
  """Draws what is inverted for the first seed, above real rows."""
  one_batch = {'seeds': 1, 'dmm.batches': 1, **ARMS['inverted']}
  config = defaults.updated(config, one_batch, 'one batch')
  alone = defaults.updated(config, ARMS['buffers'], 'the merge')
  experiment = build.experiment(alone, data, federation)
  states, _ = merged(experiment, jax.tree.map(lambda x: x[:1], stacked), rounds)
  models, merge = (tree.take(x, 0) for x in (stacked, states.base))
  setup = Setup(config, build.model(config, data, federation), mappers.one_by_one(), federation)
  given = merge, models, experiment.federation, jax.random.key(config.seed)
  made, _ = jax.jit(dmm.pseudo_inputs(setup))(*given)
  real, _ = pseudo_data.real_rows(setup.net, count=GRID)(*given)
  plots.images({'inverted': made[:GRID], 'real': real}, workdir.file('plots', 'inverted.png'))


if __name__ == '__main__':
  try:
    app.run(study, flags_parser=flags.FLAGS)
  except (InputError, flags.Error) as error:
    sys.exit(main.fail(error, 2))
