"""No setting is without effect: another value makes another program."""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from hmm_jax.algorithms import METHODS
from hmm_jax.algorithms.parts import LOCAL
from hmm_jax.check import toys
from hmm_jax.check.methods import Trial
from hmm_jax.registry import Setting

# What has to be set before a setting counts, and values where the next number is no choice.
BEFORE = {
    'fedopt.momentum': {'fedopt.optimizer': 'sgd'},
    'fedmr.segments': {'fedmr.granularity': 'segment', 'fedmr.segments': 1},
    'fedmr.frozen': {'fedmr.shuffle': 'probability'},
    'fedmerge.newcomer_rounds': {'fedmerge.newcomers': 1, 'participation': 2},
    'fedmerge.newcomers': {'participation': 2},
    'fedmerge.start': {'fedmerge.models': 1},
    'feddle.sigma': {'feddle.search': 'evolution'},
    'feddle.population': {'feddle.search': 'evolution'},
    'feddle.bound': {'feddle.constraint': 'box'},
    'feddle.normalize': {'feddle.coefficients': 'layer'},
    'feddle.batches': {'feddle.statistics': 'server'},
    'feddle.evict': {'feddle.atlas': 5, 'participation': 2},
    'feddle.strikes': {'feddle.strikes': 0},
    'local.lr_end': {'local.schedule': 'linear'},
    'gossip.degree': {'gossip.topology': 'base', 'gossip.degree': 1},
    'gossip.edge_probability': {'gossip.topology': 'erdos_renyi'},
    'gossip.graph_seed': {'gossip.topology': 'erdos_renyi'},
    'gossip.weights': {'gossip.topology': 'star'},
    'merging.settings': {'merging.method': 'ties'},
    'merging.batches': {'merging.method': 'regmean'},
    'merging.batch': {'merging.method': 'regmean'},
    'merging.rows': {'merging.method': 'regmean'},
    'dmm.density': {'dmm.merge': 'ties'},
    'feddle.atlas': {'participation': 2},
    'feddle.pull': {'feddle.pull': 0.5},
}
VALUES = {
    'fedopt.optimizer': 'yogi', 'fedmerge.weight_step': 'adam', 'feddle.search': 'sgd',
    'feddle.atlas': 3, 'gossip.topology': 'ring', 'gossip.schedule': 'dense@1:2',
    'gossip.final_merge': 'none', 'merging.method': 'ties', 'dmm.threshold': '0.1',
    'merging.settings': ('density=0.5',), 'local.optimizer': 'adamw',
    'feddle.checkpoints': 2, 'gossip.weights': 'uniform',
    'fedmr.segments': 2, 'local.batch': 2, 'dmm.distillation_batch': 1,
}
# What only images show, or other data; and what only networks with BatchNorm show.
ELSEWHERE = ('dmm.augment', 'dmm.shift', 'merging.rows')
NEEDS_STATISTICS = ('gossip.statistics', 'gossip.merged_statistics', 'gossip.merge_data',
                    'gossip.merge_batches', 'feddle.statistics', 'feddle.batches',
                    'merging.statistics')
TINY = {'merging.rows': 'train', 'dmm.batch': 4, 'dmm.batches': 1, 'dmm.steps': 2,
        'dmm.distillation_batch': 2, 'inversion.steps': 2, 'fedgen.steps': 2}
SHARED = {
    'local': ('fedavg', LOCAL),
}


def another(key: str, setting: Setting) -> Any:
  """Returns another value than the default."""
  if key in VALUES:
    return VALUES[key]
  default = setting.default
  if setting.choices:
    return next(choice for choice in setting.choices if choice != default)
  if isinstance(default, float):
    return default / 2 if default else 0.25
  return default + 1


@cache
def program(name: str, changes: tuple) -> str:
  """Returns the program of a run of a method, its constants included."""
  given = dict(changes)
  normalized = name == 'dmm' or any(key in NEEDS_STATISTICS for key in given)
  trial = Trial(name, TINY | given, model=toys.norm() if normalized else toys.deep())
  algorithm = trial.algorithm

  def play(key, federation):
    state, metrics = algorithm.round(algorithm.init(key, federation), federation, key)
    views = algorithm.views(state, federation)
    end = algorithm.finish(state, federation, key) if algorithm.finish else ()
    return state, metrics, views, end

  closed = jax.make_jaxpr(play)(jax.random.key(0), trial.federation)
  constants = [np.asarray(c).tobytes() for c in closed.consts]
  return f'{closed.jaxpr} {constants} {algorithm.traffic} {algorithm.length}'


CASES = [(name, f'{section}.{key}', setting)
         for name, section, settings in (
             *((m.name, m.name, m.settings) for m in METHODS.values()),
             *((name, section, settings) for section, (name, settings) in SHARED.items()))
         for key, setting in settings.items() if f'{section}.{key}' not in ELSEWHERE]


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'key', 'setting'), [
    pytest.param(*case, id=case[1]) for case in CASES])
def test_another_value_makes_another_program(name, key, setting):
  before = BEFORE.get(key, {})
  if key in NEEDS_STATISTICS:
    before = {key: setting.default, **before}
  other = another(key, setting)
  plain = program(name, tuple(({key: setting.default} | before).items()))
  changed = program(name, tuple((before | {key: other}).items()))
  assert plain != changed, f'{key}={other} makes the same program as {setting.default}'
