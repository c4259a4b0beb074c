"""What coefficients does Feddle give to clients whose labels are wrong?

  python experiments/coefficients.py --workdir=RUN --clean=RUN

Both are folders of Feddle's runs, or runs recorded in experiments/results/feddle (noisy_0.3 and
in_domain, say), that differ in corrupt.clients alone, the second without any. A client's
coefficient in a round is taken less the plain average's, c_k - p_k |a_k| / s, where its update has
just arrived, and averaged over its rounds. Out come, for each seed, the mean over corrupted clients
and over the others, in the run and, for the same clients, in the clean one, and the difference of
the two differences: the effect of being corrupted, paired by client.
"""

import collections
import os
import sys

from absl import app, flags
import numpy as np
import results

from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report.screen import Screen, fail
from hmm_jax.types import InputError

WORKDIR = flags.DEFINE_string('workdir', None, 'The run with corrupted clients.', required=True)
CLEAN = flags.DEFINE_string('clean', None, 'The run without them.', required=True)


def study(argv):
  if len(argv) > 1:
    raise InputError(f'got argument {argv[1]}; expected only --flags')
  made, other = (arrivals(name) for name in (WORKDIR.value, CLEAN.value))
  noisy, clean, bad = gains(made), gains(other), set(made['corrupted'])
  if not bad:
    raise InputError(f'got workdir={WORKDIR.value}; expected a run with corrupted clients')
  rows, effects = [], []
  for seed in sorted(noisy.keys() & clean.keys()):
    both = noisy[seed].keys() & clean[seed].keys()
    groups = [sorted(both & bad), sorted(both - bad)]
    means = [[np.mean([run[seed][k] for k in group]) for run in (noisy, clean)]
             for group in groups]
    effects.append((means[0][0] - means[0][1]) - (means[1][0] - means[1][1]))
    lower = np.mean([noisy[seed][k] < clean[seed][k] for k in groups[0]])
    rows.append([seed, *(f'{v:+.4f}' for pair in means for v in pair), f'{effects[-1]:+.4f}',
                 f'{lower:.2f}'])
  Screen().table(
      'coefficient less the plain average\'s, mean over clients',
      ['seed', 'corrupted', 'the same, clean', 'others', 'the same, clean', 'effect',
       'corrupted below clean'], rows)
  print(f'effect {np.mean(effects):+.4f} ± {np.std(effects, ddof=1):.4f} over '
        f'{len(effects)} seeds, {len(bad)} corrupted clients')


def arrivals(name: str) -> dict:
  """Returns what a run gave to the updates that had just arrived."""
  folder = os.path.isdir(name)
  made = results.arrivals(Workdir(name)) if folder else results.recorded_arrivals().get(name)
  if not made:
    raise InputError(f'got {name}; expected the folder of a run of feddle, or one of '
                     f'{", ".join(results.recorded_arrivals())}')
  return made


def gains(made: dict) -> dict:
  """Returns {seed: {client: mean of its coefficients less the average's, as it arrived}}."""
  values = collections.defaultdict(lambda: collections.defaultdict(list))
  for seed, rows in zip(made['seeds'], results.unpack(made, len(made['seeds']))):
    for row in rows:
      values[seed][row['client']].append(row['coefficient'] - row['average'])
  return {seed: {k: float(np.mean(v)) for k, v in own.items()} for seed, own in values.items()}


if __name__ == '__main__':
  try:
    app.run(study, flags_parser=flags.FLAGS)
  except (InputError, flags.Error) as error:
    sys.exit(fail(error, 2))
