"""DMM's ablation: what does each of its steps add, and how good are other merges of the models?

  python experiments/ladder.py --workdir=RUN [--variants=core,noise]

RUN is the folder of a finished run of experiments/dmm.py, merged once. Its clients are trained
already: their models are read from its checkpoint and merged anew, variant by variant,

  core, buffers        the core's merge, without and with all models' statistics
  noise, inverted      distilled on N(0, 1), the baseline, and on inverted inputs: DMM
  real                 distilled on as many of the clients' examples: the upper bound
  each, everybody      each model's statistics inverted, a batch each; all models as teachers
  average, ties, cat   averaged by examples, and by two operators that need no data for statistics
  recalibrated         the average, its statistics recalibrated on the clients' validation examples
  matched, pleas       Git Re-Basin and PLeaS: hidden units aligned, statistics recalibrated as well
  loose, strict        on request: `inverted` with pairs of the core at a cosine of 0, or of 0.2

with the keys that the run had itself; a variant that changes nothing is the run's own merge. RUN
gets ladder.json, from which variants that are there already are printed again, and
plots/inverted.png: of the first batch that is inverted for the first seed, above as many examples
of its clients.
"""

import sys

from absl import app, flags
import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms import dmm
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers
from hmm_jax.experiment import build, devices
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.run import finished, over_seeds
from hmm_jax.experiment.saved import Run
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.report import tables
from hmm_jax.report.plots.images import images
from hmm_jax.report.screen import Screen, fail
from hmm_jax.report.style import save_pair
from hmm_jax.server import pseudo_data
from hmm_jax.types import InputError

RECALIBRATED = {'algorithm': 'merging', 'merging.statistics': 'recalibrated'}
VARIANTS = {
    'core': {'dmm.inputs': 'none', 'dmm.buffers': 'core'},
    'buffers': {'dmm.inputs': 'none'},
    'noise': {'dmm.inputs': 'noise'},
    'inverted': {'dmm.inputs': 'inverted'},
    'real': {'dmm.inputs': 'real'},
    'each': {'dmm.statistics_of': 'each', 'dmm.batch': 64, 'dmm.batches': 1},
    'everybody': {'dmm.teachers': 'all'},
    'average': {'algorithm': 'merging'},
    'ties': {'algorithm': 'merging', 'merging.method': 'ties'},
    'cat': {'algorithm': 'merging', 'merging.method': 'cat'},
    'recalibrated': RECALIBRATED,
    'matched': {**RECALIBRATED, 'merging.match': 'weights'},
    'pleas': {**RECALIBRATED, 'merging.method': 'pleas'},
    'loose': {'dmm.threshold': '0.0'},
    'strict': {'dmm.threshold': '0.2'},
}
ON_REQUEST = {'loose', 'strict'}
NEED_SYMMETRY = {'matched', 'pleas'}  # Not known where two branches meet.
GRID = 32  # images of each kind in the picture
ACCURACY = 'global/test/accuracy'

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
CHOSEN = flags.DEFINE_list(
    'variants', [name for name in VARIANTS if name not in ON_REQUEST], 'Which variants.')


def study(argv):
  if len(argv) > 1:
    raise InputError(f'got argument {argv[1]}; expected only --flags')
  run = Run.load(WORKDIR.value)
  config, folder, rows = run.config, run.folder, run.metrics
  if config.algorithm != 'dmm' or not rows or not finished(rows) or config.one_shot.every:
    raise InputError(f'got workdir={folder.path}; expected that of a finished run of dmm that was '
                     'merged once')
  folder.check_writable()
  names = chosen(config)
  devices.prepare(mapper=config.mapper, cohort=0)
  made = folder.read_json('ladder.json') or {'rounds': config.rounds, 'arms': {}}
  if missing := [name for name in names if name not in made['arms']]:
    extend(run, made, missing)
  tables.show_arms(folder.path, {name: made['arms'][name] for name in names}, run.seeds, Screen())


def chosen(config):
  """Returns the variants that were asked for, without those that the network does not allow."""
  unknown = set(CHOSEN.value) - VARIANTS.keys()
  if unknown or not CHOSEN.value:
    raise InputError(f'got variants={",".join(sorted(unknown))}; expected names among '
                     f'{", ".join(VARIANTS)}')
  branches = config.dataset == 'crisismmd' and config.crisismmd.modalities == 'both'
  return [name for name in VARIANTS
          if name in CHOSEN.value and not (branches and name in NEED_SYMMETRY)]


def extend(run, made, names):
  """Merges the run's clients by more variants, and draws what was inverted."""
  stacked, own = run.states.stacked, run.metrics[-run.config.seeds:]
  alone = configs.updated(run.config, {'variants': (), 'references': ''}, 'the run')
  for name in names:
    changed, rows = configs.updated(alone, VARIANTS[name], name), own
    if changed != alone:
      _, rows = merged(build.experiment(changed, run.dataset, run.federation), stacked,
                       made['rounds'])
    made['arms'][name] = over_seeds(rows)
    made['arms'] = {name: made['arms'][name] for name in VARIANTS if name in made['arms']}
    run.folder.write_json('ladder.json', made)
    Screen().say(f'{name}: test accuracy {tables.spread(made["arms"][name][ACCURACY])}')
  if all(leaf.ndim == 4 for leaf in jax.tree.leaves(run.federation.examples.x)):
    picture(run, alone, stacked, made['rounds'])


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


def picture(run, config, stacked, rounds):
  """Draws what is inverted for the first seed, above real examples."""
  one_batch = {'seeds': 1, 'dmm.batches': 1, **VARIANTS['inverted']}
  config = configs.updated(config, one_batch, 'one batch')
  alone = configs.updated(config, VARIANTS['buffers'], 'the merge')
  experiment = build.experiment(alone, run.dataset, run.federation)
  states, _ = merged(experiment, jax.tree.map(lambda x: x[:1], stacked), rounds)
  models, merge = (tree.take(x, 0) for x in (stacked, states.base))
  parts = Parts(config, run.model, mappers.one_by_one(), run.federation)
  given = merge, models, experiment.federation, jax.random.key(config.seed)
  found, _ = jax.jit(dmm.pseudo_inputs(parts, config.dmm))(*given)
  real, _ = pseudo_data.real_examples(run.model, count=GRID)(*given)
  figure = images({'inverted': found[:GRID], 'real': real})
  save_pair(figure, run.folder.file('plots', 'inverted'))


if __name__ == '__main__':
  try:
    app.run(study, flags_parser=flags.FLAGS)
  except (InputError, flags.Error) as error:
    sys.exit(fail(error, 2))
