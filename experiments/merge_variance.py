"""How much does a merged update depend on who was drawn: Feddle's beside the plain average's?

  python experiments/merge_variance.py --config=experiments/feddle.py [--after=20] [--cohorts=20]

Feddle's run of the config is trained for `after` rounds from each of its seeds. Then a round
is played from there with as many cohorts as are asked for, drawn anew, once with the search
and once without: the same clients train, and begin from the same model and the same atlas.
Out come, for each seed, the variance of the merged update (the mean squared distance of an
update to their mean) and the same over the squared length of that mean.
"""

from functools import partial
import sys

from absl import app, flags
import jax
import numpy as np

from hmm_jax import tree
from hmm_jax.experiment import build, devices, federation
from hmm_jax.experiment import config as configs
from hmm_jax.main import train as main
from hmm_jax.report.screen import Screen, fail
from hmm_jax.types import InputError

AFTER = flags.DEFINE_integer('after', 20, 'Rounds before.', lower_bound=1)
COHORTS = flags.DEFINE_integer('cohorts', 20, 'How many are drawn.', lower_bound=2)


def study(config, argv):
  if len(argv) > 1:
    raise InputError(f'got argument {argv[1]}; expected only --flags')
  configs.check(config)
  if config.algorithm != 'feddle' or config.feddle.search == 'none':
    raise InputError(f'got algorithm={config.algorithm}, feddle.search={config.feddle.search}; '
                     'expected feddle with a search')
  devices.prepare(mapper=config.mapper, cohort=federation.cohort(config))
  data = federation.dataset(config)
  federated = federation.federation(config, data)
  plain = configs.updated(config, {'feddle.search': 'none'}, 'the plain average')
  guided, average = (build.experiment(c, data, federated) for c in (config, plain))
  rows = []
  for seed in guided.seeds:
    spread = [variance(seed, guided, other) for other in (guided, average)]
    rows.append([seed, *(f'{v:.4g}' for pair in spread for v in pair),
                 f'{spread[0][0] / spread[1][0]:.3f}', f'{spread[0][1] / spread[1][1]:.3f}'])
  Screen().table(
      f'variance of the merged update after {AFTER.value} rounds, over {COHORTS.value} cohorts',
      ['seed', 'guided', 'over |mean|^2', 'average', 'over |mean|^2', 'ratio', 'ratio of these'],
      rows)


def variance(seed, trained, played):
  """Returns the variance of `played`'s update from `trained`'s state, absolute and relative."""
  data = trained.federation
  key, *draws = jax.random.split(jax.random.key(seed), 1 + AFTER.value + COHORTS.value)
  jit = lambda f: jax.jit(f, out_shardings=trained.sharding)
  state, train = jit(trained.algorithm.init)(key, data), jit(trained.algorithm.round)
  for draw in draws[:AFTER.value]:
    state, _ = train(state, data, draw)

  def update(state, data, draw):
    model = lambda state: played.algorithm.views(state, data)['global']['params']
    after, _ = played.algorithm.round(state, data, draw)
    return tree.sub(model(after), model(state))

  play = jit(update)
  flat = np.stack([np.concatenate([np.ravel(x) for x in jax.tree.leaves(
      play(state, data, draw))]) for draw in draws[AFTER.value:]]).astype(np.float64)
  total = flat.var(axis=0, ddof=1).sum()
  return total, total / np.square(flat.mean(axis=0)).sum()


if __name__ == '__main__':
  try:
    config, argv = main.read_command(sys.argv)
    app.run(partial(study, config), argv=argv, flags_parser=main.parse_flags)
  except InputError as error:
    sys.exit(fail(error, 2))
