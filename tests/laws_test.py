"""Laws of every built-in method; a new one is a row in TABLE."""

from collections.abc import Callable, Mapping
from functools import cache
import itertools
from typing import Any, NamedTuple

import jax
import pytest
from reference import toys

from hmm_jax import tree
from hmm_jax.algorithms import METHODS
from hmm_jax.check import methods, placement
from hmm_jax.check import toys as networks
from hmm_jax.check.methods import Trial
from hmm_jax.registry import NOTHING
from hmm_jax.types import Model

COHORT = 2  # of K = 5
K = len(toys.SIZES)


class Row(NamedTuple):
  """One method, or one of its variants.

  step:    (trial): fails if the method's own step is replaced by plain averaging.
  changes: to the tiny config of the laws.
  method:  of the row; None if it has the row's name.
  model:   the network, if it is not the one that the laws choose.
  """

  step: Callable[[Trial], None]
  changes: Mapping[str, Any] = NOTHING
  method: str | None = None
  model: Callable[[], Model] | None = None


@cache
def trial(name: str) -> Trial:
  """Returns the trial of a row; one that samples draws COHORT of the clients."""
  row = TABLE[name]
  return Trial(row.method or name, {'participation': cohort(name), **row.changes},
               model=row.model and row.model())


@cache
def full_trial(name: str) -> Trial:
  """Returns the trial of a row in which every client takes part."""
  return Trial(TABLE[name].method or name, TABLE[name].changes,
               model=TABLE[name].model and TABLE[name].model())


def cohort(name: str) -> int:
  return 0 if 'all clients' in METHODS[TABLE[name].method or name].needs else COHORT


def far_from(other: str) -> Callable:
  """The global model after two rounds is not that of another row."""
  return lambda own: toys.assert_far(
      *(t.moments[2].views['global'] for t in (own, trial(other))), least=0.01)


def far_from_average(weights: str = 'size', **changes) -> Callable:
  """The global model after four rounds is not that of fedavg on the same network."""

  def step(own):
    plain = Trial('fedavg', {'participation': own.config.participation, 'fedavg.weights': weights,
                             **changes}, model=own.model)
    toys.assert_far(own.moments[4].views['global'], plain.play(4)[4].views['global'], least=0.01)

  return step


def nearer_than(other: str) -> Callable:
  """Two rounds move the global model less than those of another row."""

  def step(own):
    start = own.moments[0].views['global']
    near, far = (tree.sub(t.moments[2].views['global'], start) for t in (own, trial(other)))
    assert tree.dot(near, near) < 0.8 * tree.dot(far, far)

  return step


def clients_differ(own: Trial):
  """In the end no two clients have the same model."""
  for model, other in itertools.combinations(tree.unstack(own.moments[-1].views['clients']), 2):
    toys.assert_far(model, other)


def clients_share(same: str, private: str) -> Callable:
  """In the end clients have one part in common, and another not."""

  def step(own):
    first, *others = tree.unstack(own.moments[-1].views['clients']['params'])
    for other in others:
      toys.assert_close(other[same], first[same], atol=0)
      toys.assert_far(other[private], first[private], least=0.01)

  return step


def mixtures_differ(own: Trial):
  """In the end no two models are the same, nor two clients' weights."""
  for stacked in own.moments[-1].views['clients']:
    for member, other in itertools.combinations(tree.unstack(stacked), 2):
      toys.assert_far(member, other, least=0.01)


def clients_cluster(own: Trial):
  """In the end some clients have the same model, and some another."""
  models = [jax.tree.leaves(model) for model in tree.unstack(own.moments[-1].views['clients'])]
  distinct = {b''.join(leaf.tobytes() for leaf in model) for model in models}
  assert 1 < len(distinct) < K, f'got {len(distinct)} models; expected fewer than clients'


def clients_approach(own: Trial):
  """After two rounds clients are nearer to each other than at first, but not one."""
  start, end = (sum(leaf.var(axis=0).sum() for leaf in jax.tree.leaves(moment.views['clients']))
                for moment in (own.moments[0], own.moments[2]))
  assert 0.01 < end / start < 0.7, f'got a spread of {end} from {start}'


GOSSIP = {'gossip.rate': 0.8, 'local.momentum': 0.5, 'gossip.merged_statistics': 'averaged'}
FEDGEN = {'fedgen.hidden': 6, 'fedgen.noise': 4, 'fedgen.steps': 4, 'fedgen.batch': 8,
          'fedgen.alpha': 1.0, 'fedgen.lr': 0.01}
DMM = {'one_shot.every': 3, 'dmm.statistics_of': 'each', 'dmm.batch': 8, 'dmm.batches': 1,
       'dmm.augment': 'none', 'dmm.steps': 4, 'dmm.distillation_batch': 8, 'dmm.lr': 0.02,
       'dmm.keep': 0.1, 'inversion.steps': 4}

TABLE = {
    'fedavg': Row(far_from('fedavg-uniform')),
    'fedavg-uniform': Row(far_from('fedavg'), {'fedavg.weights': 'uniform'}, 'fedavg'),
    'fedprox': Row(nearer_than('fedavg'), {'fedprox.mu': 1.0}),
    'fedopt': Row(far_from('fedavg'), {'fedopt.lr': 0.1}),
    'scaffold': Row(far_from('fedavg-uniform')),
    'moon': Row(far_from_average(), model=networks.deep),
    'fedgen': Row(far_from('fedavg'), FEDGEN),
    'clusamp': Row(far_from('fedavg-uniform')),
    'clusamp-similarity': Row(far_from('clusamp'), {'clusamp.order': 'similarity'}, 'clusamp'),
    'fedmr': Row(far_from('fedavg-uniform')),
    'fedmr-probability': Row(
        far_from_average('uniform'), {
            'fedmr.granularity': 'layer', 'fedmr.dropout': 0.2, 'fedmr.shuffle': 'probability',
            'fedmr.frozen': 0.04}, 'fedmr', networks.deep),
    'fedcross': Row(far_from('fedavg-uniform'), {'fedcross.alpha': 0.9}),
    'fedmerge': Row(clients_differ, {'fedmerge.models': 3, 'fedmerge.weight_lr': 0.5},
                    model=networks.deep),
    'fedmerge-adam': Row(
        clients_differ, {
            'fedmerge.models': 3, 'fedmerge.weight_step': 'adam', 'fedmerge.weight_lr': 0.5,
            'fedmerge.scope': 'all', 'fedmerge.normalize': 'none'}, 'fedmerge', networks.deep),
    'ifca': Row(clients_cluster, {'ifca.models': 4}),
    'fesem': Row(clients_cluster, {'fesem.models': 2}),
    'fedem': Row(mixtures_differ),
    'ditto': Row(clients_differ),
    'apfl': Row(clients_differ, {'apfl.alpha_lr': 0.3}),
    'fedper': Row(clients_share('trunk', 'head')),
    'fedrep': Row(clients_share('trunk', 'head'), {'fedrep.head_epochs': 2}),
    'fedbn': Row(clients_share('head', 'trunk')),
    'pfedme': Row(clients_differ, {'pfedme.lam': 1.0, 'pfedme.personal_lr': 0.3}),
    'feddle': Row(far_from('fedavg'), {'feddle.lr': 0.1}),
    'feddle-late': Row(
        far_from('fedavg'), {
            'feddle.search': 'evolution', 'feddle.sigma': 0.1, 'feddle.population': 4,
            'feddle.coefficients': 'layer', 'feddle.normalize': 'layer', 'feddle.evict': 'worst',
            'feddle.tau_max': 2, 'feddle.strikes': 1}, 'feddle'),
    'learned_soup': Row(far_from('fedavg'), {'learned_soup.lr': 0.3}),
    'adamerging': Row(far_from('fedavg'), {'adamerging.lr': 0.03}),
    'server_only': Row(far_from('fedavg')),
    'server_as_client': Row(far_from('fedavg')),
    'clg_sgd': Row(far_from('fedavg')),
    'fedclg_c': Row(far_from('clg_sgd')),
    'fedclg_s': Row(far_from_average(**{'local.lr': 0.1}), {'local.lr': 0.1}),
    'feddf': Row(far_from('fedavg'), {'feddf.lr': 0.1}),
    'gossip': Row(clients_approach, {'gossip.topology': 'ring', **GOSSIP}),
    'gossip-matching': Row(clients_approach, {'gossip.topology': 'matching', **GOSSIP}, 'gossip'),
    'merging': Row(
        far_from_average(),
        {'merging.method': 'ties', 'merging.rows': 'train', 'one_shot.every': 3}),
    'dmm': Row(far_from_average(), DMM),
    'local': Row(clients_differ),
    'centralized': Row(far_from('fedavg')),
}
# One row of each way in which a round is put together. What is a theorem about these ways is tried
# on these rows only: a cohort of all clients, and the laws of ON_PATHS.
PATHS = ('fedavg', 'scaffold', 'fedmr', 'ditto', 'feddle', 'gossip', 'fedmerge')
ON_PATHS = ('compiled is eager', 'the mapper does not matter')
CASES = [*TABLE, *(f'{name}-all' for name in PATHS if cohort(name))]


def law_id(law: str) -> str:
  return law.replace(' ', '-')


def of_case(case: str) -> Trial:
  name = case.removesuffix('-all')
  return trial(name) if name == case else full_trial(name)


def slowly(name: str, law: str) -> list:
  """Marks the laws of lifting that the fast tier leaves out."""
  quick = name in PATHS and law != 'compiled is eager'
  return [] if quick or (name, law) == ('fedavg', 'compiled is eager') else [pytest.mark.slow]


def test_every_method_has_a_row():
  assert METHODS.keys() <= TABLE.keys()


@pytest.mark.parametrize('law', methods.OWN, ids=law_id)
@pytest.mark.parametrize('case', CASES)
def test_own_law(case, law):
  methods.OWN[law](of_case(case))


@pytest.mark.parametrize(('name', 'law'), [
    pytest.param(name, law, id=f'{name}-{law_id(law)}', marks=slowly(name, law))
    for name in TABLE for law in methods.LIFTING if name in PATHS or law not in ON_PATHS])
def test_lifting_law(name, law):
  methods.LIFTING[law](trial(name))


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_placement_does_not_matter(name):
  """Each method is placed in the hardest ways, and one after another in the others."""
  own = placement.OTHERS[[*METHODS].index(name)::len(METHODS)]
  placement.placement_does_not_matter(trial(name), (*placement.HARDEST, *own))


def test_every_two_parts_of_a_placement_are_tried():
  pairs = lambda places: {(i, j, place[i], place[j]) for place in places
                          for i, j in ((0, 1), (0, 2), (1, 2))}
  tried = (placement.PLAIN, *placement.HARDEST, *placement.OTHERS)
  parts = ({place[i] for place in tried} for i in range(3))
  assert pairs(tried) == pairs(itertools.product(*parts))


@cache
def task_trial(name: str, task: str) -> Trial:
  row = TABLE[name]
  # The squared error is steeper than the cross-entropy.
  gentle = {'pfedme.personal_lr': 0.03} if (name, task) == ('pfedme', 'regression') else {}
  return Trial(row.method or name, {'participation': cohort(name), **row.changes, **gentle},
               task=task)


def learns(name: str, task: str) -> bool:
  """Tells whether a method learns a task.

  Next tokens have a network without BatchNorm here, and a regression has no entropy to minimize.
  """
  needs = METHODS[name].needs
  return not ('classes' in needs or (task == 'next_token' and 'BatchNorm' in needs)
              or (task, name) == ('regression', 'adamerging'))


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'task'), [
    (name, task) for task in ('regression', 'next_token') for name in METHODS if learns(name, task)]
    + [(name, 'multilabel') for name in PATHS])
def test_laws_of_another_task(name, task):
  for holds in methods.OWN.values():
    holds(task_trial(name, task))


@pytest.mark.parametrize('task', ['regression', 'next_token', 'multilabel'])
@pytest.mark.parametrize('name', ['fedavg', 'feddle', 'fedmerge'])
def test_another_task_is_learned(name, task):
  methods.loss_falls(task_trial(name, task))


@pytest.mark.parametrize('name', TABLE)
def test_is_not_plain_averaging(name):
  TABLE[name].step(trial(name))
