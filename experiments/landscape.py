"""The loss landscape between a run's clients: along lines, and over a polygon.

  python experiments/landscape.py --workdir=RUN [--seed=0] [--models=6] [--rows=2000]
      [--points=25] [--resolution=8] [--split=test] [--batches=20]

Reads the newest checkpoint of RUN, which may be unfinished but not training just now, and
takes the first `models` clients by position (our choice, as are their corners) of one
training seed. Mixtures of their models are scored on at most `rows` examples of the split. In
networks with BatchNorm every mixture, a model alone included, gets new statistics first:
the mean over `batches` batches of config.local.batch training examples of all clients. Examples
and batches are drawn once, with a fixed key.

Out come the loss barrier of every pair, and the loss of each model and of their mean; RUN
gets plots/interpolation.png, plots/landscape.png and landscape.npz with every array.
"""

from functools import partial
import itertools
import sys

from absl import app, flags
import jax
import numpy as np

from hmm_jax import tree
from hmm_jax.client import mappers
from hmm_jax.experiment import build, devices
from hmm_jax.experiment.description import describe
from hmm_jax.experiment.saved import Run
from hmm_jax.merging.batch_norm.recalibrate import recalibrate
from hmm_jax.report import landscape
from hmm_jax.report.plots import landscapes
from hmm_jax.report.screen import Screen, fail
from hmm_jax.report.style import save_pair
from hmm_jax.types import InputError

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
SEED = flags.DEFINE_integer('seed', None, 'Training seed; default the first of the run.')
MODELS = flags.DEFINE_integer('models', 6, 'Clients, at least 3.')
ROWS = flags.DEFINE_integer('rows', 2000, 'Examples to score on.', lower_bound=1)
POINTS = flags.DEFINE_integer(
    'points', 25, 'Points on a line.', lower_bound=2, upper_bound=10_000)
RESOLUTION = flags.DEFINE_integer(
    'resolution', 8, 'Rings about the center of the polygon.', lower_bound=1, upper_bound=200)
SPLIT = flags.DEFINE_enum('split', 'test', ['train', 'validation', 'test'], 'Which examples.')
BATCHES = flags.DEFINE_integer('batches', 20, 'For new statistics.', lower_bound=1)


def study(argv):
  if len(argv) > 1:
    raise InputError(f'got argument {argv[1]}; expected only --flags')
  run = Run.load(WORKDIR.value)
  devices.prepare(mapper=run.config.mapper, cohort=0)
  run.folder.check_writable()
  stacked = models(run)
  rng, clients = np.random.default_rng(0), run.federation.clients
  train = np.unique(np.concatenate([x[:size] for x, size in zip(clients.index, clients.size)]))
  rows = train if SPLIT.value == 'train' else getattr(run.federation, SPLIT.value).rows
  if not len(rows):
    raise InputError(f'got split={SPLIT.value}, of which the run has no examples; expected another')
  # No example comes twice while there are others.
  batches = np.resize(rng.permutation(train), (BATCHES.value, run.config.local.batch))
  scoring = {
      'examples': run.experiment.federation.examples, 'rows': rng.permutation(rows)[:ROWS.value],
      'mapper': build.devices(run.config, jax.devices())[0](mappers.one_by_one()),
      'batch': run.config.eval_batch,
      'calibrate': partial(recalibrate, run.model, rows=batches)}
  surface = landscape.surface(run.model, stacked, resolution=RESOLUTION.value, **scoring)
  members = dict(zip(clients.id[:MODELS.value].tolist(), tree.unstack(stacked)))
  lines = {(i, j): landscape.interpolate(run.model, members[i], members[j], points=POINTS.value,
                                         **scoring)
           for i, j in itertools.combinations(members, 2)}
  write(run.folder, list(members), lines, surface)


def models(run):
  """Returns the models of the chosen clients at the newest checkpoint, [K, ...]."""
  rounds, total = run.rounds, len(run.federation.clients.id)
  if not 3 <= MODELS.value <= total:
    raise InputError(f'got models={MODELS.value}; expected 3 to {total}, the number of clients')
  views = run.models(SEED.value)
  stacked = views.get('locals', views.get('clients'))
  if stacked is None:
    raise InputError(f'got a run of {run.config.algorithm}; expected a model a client, as in local')
  stacked = tree.take(stacked, np.arange(MODELS.value))
  if all((x == x[:1]).all() for x in jax.tree.leaves(stacked)):
    raise InputError(f'got identical models after round {rounds}; expected different ones, so '
                     'without a final merge: the run needs gossip.final_merge=none')
  return stacked


def write(workdir, ids, lines, surface):
  position, loss, accuracy, barrier = map(np.stack, zip(*lines.values()))
  names, corners = [f'{i} - {j}' for i, j in lines], (surface.weights == 1).argmax(axis=0)
  for title, labels, values in (
      ('loss barrier', [*names, 'mean', 'max'], [*barrier, barrier.mean(), barrier.max()]),
      ('loss', [*ids, 'mean model'], [*surface.loss[corners], surface.loss[0]])):
    Screen().table(title, ['clients', title], [[n, f'{v:.4f}'] for n, v in zip(labels, values)])
  title = describe(workdir).title
  save_pair(landscapes.interpolation(dict(zip(names, lines.values())), title),
            workdir.file('plots', 'interpolation'))
  save_pair(landscapes.landscape(surface, [f'client {k}' for k in ids], title),
            workdir.file('plots', 'landscape'))
  np.savez(workdir.file('landscape.npz'), clients=ids, pairs=list(lines), barrier=barrier,
           line_position=position, line_loss=loss, line_accuracy=accuracy,
           **{f'surface_{name}': values for name, values in surface._asdict().items()})


if __name__ == '__main__':
  try:
    app.run(study, flags_parser=flags.FLAGS)
  except (InputError, flags.Error) as error:
    sys.exit(fail(error, 2))
