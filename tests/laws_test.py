"""Laws that every algorithm obeys; a new one is a line in TABLE."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax
from reference import toys

from hmm_jax import tree
from hmm_jax.algorithms import centralised, fedavg, fedopt, gossip, local, scaffold, topology
from hmm_jax.algorithms.schedule import schedule
from hmm_jax.client import losses, participation
from hmm_jax.client.local import continued_training, local_training
from hmm_jax.evaluate import STACKED
from hmm_jax.types import Algorithm, Cohort, Federation, PyTree, Traffic

LR = 0.3
ROUNDS = 25
COHORT = 2  # of K = 5
NET = toys.linear()
CROSS_ENTROPY = losses.cross_entropy(NET)
FEDERATION = toys.federation()
K = len(toys.SIZES)


def training(loss=CROSS_ENTROPY):
  return local_training(loss, optax.sgd(LR), batch=4, epochs=2)


def gossiping(graph, **on):
  """Returns gossip from different starts; optimisers with momentum live on."""
  optimizer, complete = optax.sgd(LR, momentum=0.5), topology.topology('complete', K)
  return gossip.gossip(
      NET, continued_training(CROSS_ENTROPY, optimizer, batch=4, epochs=2),
      topology=topology.topology(graph, K), schedule=schedule('', rate=0.8, rounds=ROUNDS),
      init_private=optimizer.init, begin=gossip.different_starts, share=gossip.everything,
      final=(complete, 1), calibrate=lambda variables, _: variables, **on)


class Case(NamedTuple):
  """One algorithm of the table.

  make: (mapper=, participation=) -> Algorithm; `participation` only if it samples.
  mark: (name): fails if the method's own step were replaced by plain averaging.
  """

  make: Callable
  mark: Callable
  samples: bool = True


def far_from(other: str) -> Callable:
  """Returns a mark: the global model after two rounds is not the other method's."""
  return lambda name: toys.assert_far(
      *(play(method)[2].views['global'] for method in (name, other)), least=0.01)


def nearer_than(other: str) -> Callable:
  """Returns a mark: two rounds move the global model less than the other method's."""

  def mark(name):
    start = play(name)[0].views['global']
    near, far = (tree.sub(play(method)[2].views['global'], start) for method in (name, other))
    assert tree.dot(near, near) < 0.8 * tree.dot(far, far)

  return mark


def clients_differ(name: str):
  """A mark: after two rounds no two clients have the same model."""
  models = tree.unstack(play(name)[2].views['clients'])
  for k, model in enumerate(models):
    for other in models[:k]:
      toys.assert_far(model, other, least=0.01)


def clients_approach(name: str):
  """A mark: after two rounds clients are nearer to each other than at first, but not one."""
  start, end = (sum(leaf.var(axis=0).sum() for leaf in jax.tree.leaves(moment.views['clients']))
                for moment in (play(name)[0], play(name)[2]))
  assert 0.01 < end / start < 0.7, f'got a spread of {end} from {start}'


TABLE = {
    'fedavg': Case(lambda **on: fedavg.fedavg(NET, training(), **on), far_from('uniform')),
    'uniform': Case(lambda **on: fedavg.fedavg(
        NET, training(), weigh=participation.uniform, **on), far_from('fedavg')),
    'fedprox': Case(lambda **on: fedavg.fedavg(
        NET, training(losses.proximal(CROSS_ENTROPY, 1.0)), **on), nearer_than('fedavg')),
    'fedopt': Case(lambda **on: fedopt.fedopt(
        NET, training(), server=optax.adam(0.1, b2=0.99, eps=1e-3), **on), far_from('fedavg')),
    'scaffold': Case(lambda **on: scaffold.scaffold(
        NET, training(losses.corrected(CROSS_ENTROPY)), lr=LR, **on), far_from('uniform')),
    'gossip': Case(lambda **on: gossiping('ring', **on), clients_approach, samples=False),
    'matching': Case(lambda **on: gossiping('matching', **on), clients_approach, samples=False),
    'local': Case(lambda **on: local.local(NET, training(), **on), clients_differ),
    'centralised': Case(lambda **on: centralised.centralised(
        NET, training(), **on), far_from('fedavg'), samples=False),
}
FULL = tuple((name, 0) for name in TABLE)
ALL = FULL + tuple((name, COHORT) for name, case in TABLE.items() if case.samples)


class Moment(NamedTuple):
  """A run after some rounds, on the host; no metrics before the first."""

  state: PyTree
  views: dict
  metrics: dict | None


def make(name: str, cohort: int, lift: str = 'map') -> Algorithm:
  on = {'participation': cohort} if TABLE[name].samples else {}
  return TABLE[name].make(mapper=toys.lifts()[lift], **on)


@cache
def program(name: str, cohort: int, lift: str) -> tuple[Callable, list]:
  """Returns the compiled round and a list that grows by one with every trace."""
  algorithm, traces = make(name, cohort, lift), []

  def round_(*args):
    traces.append(None)
    return algorithm.round(*args)

  return toys.jit(round_), traces


def rounds(name: str, cohort: int, count: int, *, lift: str = 'map', seed: int = 0,
           federation: Federation = FEDERATION) -> list[Moment]:
  """Plays one round after another, the start included."""
  algorithm = make(name, cohort, lift)
  # Where `build` puts them: what a round returns lies on every device it ran on.
  state, federation = jax.device_put(
      (algorithm.init(toys.key(seed), federation), federation), toys.sharding(lift))
  moments = [Moment(state, algorithm.views(state, federation), None)]
  for r in range(count):
    state, metrics = program(name, cohort, lift)[0](state, federation, round_key(seed, r))
    moments.append(Moment(state, algorithm.views(state, federation), metrics))
  return [jax.tree.map(np.asarray, moment) for moment in moments]


@cache
def play(name: str, cohort: int = 0) -> list[Moment]:
  return rounds(name, cohort, ROUNDS)


def round_key(seed, r):
  return jax.random.fold_in(toys.key(seed + 50), r)


def assert_moment(got: Moment, wanted: Moment):
  toys.assert_close(got.state, wanted.state)
  toys.assert_close(got.metrics, wanted.metrics)


class LawsTest(parameterized.TestCase):

  @parameterized.parameters(*TABLE)
  def test_jit_is_eager(self, name):
    cohort = COHORT if TABLE[name].samples else 0
    algorithm = make(name, cohort)
    with jax.disable_jit():
      state = algorithm.init(toys.key(0), FEDERATION)
      state, metrics = algorithm.round(state, FEDERATION, round_key(0, 0))
    assert_moment(Moment(state, {}, metrics), play(name, cohort)[1])

  @parameterized.parameters(*ALL)
  def test_scan_is_round_by_round(self, name, cohort):
    algorithm = make(name, cohort)

    def run(state, federation):
      return jax.lax.scan(lambda state, r: algorithm.round(state, federation, round_key(0, r)),
                          state, np.arange(3))

    state, metrics = toys.jit(run)(play(name, cohort)[0].state, FEDERATION)
    alone = play(name, cohort)
    assert_moment(Moment(state, {}, tree.take(metrics, 2)), alone[3])
    assert_moment(Moment(state, {}, tree.take(metrics, 0)), alone[1]._replace(state=state))

  @parameterized.parameters(*ALL)
  def test_seeds_together_are_one_by_one(self, name, cohort):
    algorithm, seeds = make(name, cohort), (0, 7)
    states = tree.stack([algorithm.init(toys.key(seed), FEDERATION) for seed in seeds])
    together = toys.jit(jax.vmap(algorithm.round, (0, None, 0)))
    for r in range(2):
      keys = jax.numpy.stack([round_key(seed, r) for seed in seeds])
      states, metrics = together(states, FEDERATION, keys)
    for s, alone in enumerate((play(name, cohort)[2], rounds(name, cohort, 2, seed=7)[2])):
      assert_moment(Moment(tree.take(states, s), {}, tree.take(metrics, s)), alone)
    toys.assert_far(*(tree.take(states, s) for s in range(2)))

  @parameterized.parameters(
      *((*row, 'sharded-map') for row in ALL), *((*row, 'vmap-2') for row in FULL))
  def test_does_not_depend_on_the_mapper(self, name, cohort, lift):
    assert_moment(rounds(name, cohort, 2, lift=lift)[2], play(name, cohort)[2])

  @parameterized.parameters(*ALL)
  def test_is_compiled_once(self, name, cohort):
    play(name, cohort)
    self.assertLen(program(name, cohort, 'map')[1], 1)

  @parameterized.parameters(*ALL)
  def test_state_keeps_its_shape_and_counts_rounds(self, name, cohort):
    algorithm = make(name, cohort)
    state = jax.eval_shape(algorithm.init, toys.key(0), FEDERATION)
    after, _ = jax.eval_shape(algorithm.round, state, FEDERATION, toys.key(0))
    self.assertEqual(jax.tree.structure(after), jax.tree.structure(state))
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
      self.assertEqual((old.shape, old.dtype, old.weak_type), (new.shape, new.dtype, new.weak_type))
    self.assertEqual(state.round.dtype, np.int32)
    self.assertEqual([moment.state.round for moment in play(name, cohort)], [*range(ROUNDS + 1)])
    if algorithm.finish:
      last, metrics = jax.eval_shape(algorithm.finish, state, FEDERATION, toys.key(0))
      self.assertEqual(last, state)
      self.assertContainsSubset({'messages_up', 'messages_down'}, metrics)

  @parameterized.parameters(*ALL)
  def test_follows_clients_when_their_rows_are_permuted(self, name, cohort):
    order = np.array([3, 0, 4, 1, 2])
    permuted = FEDERATION._replace(clients=tree.take(FEDERATION.clients, order))
    moved, still = rounds(name, cohort, 3, federation=permuted)[3], play(name, cohort)[3]
    # What a state holds of each client has a leading K; nothing else here has one.
    toys.assert_close(moved.state, jax.tree.map(
        lambda x: x[order] if x.shape[:1] == (K,) else x, still.state))
    for view, variables in still.views.items():
      expected = tree.take(variables, order) if view in STACKED else variables
      toys.assert_close(moved.views[view], expected)
    toys.assert_close(moved.metrics['train/loss'], still.metrics['train/loss'])

  @parameterized.parameters(*FULL)
  def test_a_round_has_draws_of_its_own(self, name, cohort):
    state, _, _ = play(name, cohort)[0]
    afters = [program(name, cohort, 'map')[0](state, FEDERATION, round_key(0, r))[0]
              for r in (0, 0, 1)]
    jax.tree.map(np.testing.assert_array_equal, *afters[:2])
    toys.assert_far(*afters[1:])

  @parameterized.parameters(*ALL)
  def test_views_are_models(self, name, cohort):
    algorithm = make(name, cohort)
    state = jax.eval_shape(algorithm.init, toys.key(0), FEDERATION)
    views = jax.eval_shape(algorithm.views, state, FEDERATION)
    self.assertNotEmpty(views)
    model = jax.eval_shape(NET.init, toys.key(0))
    stack = jax.eval_shape(lambda m: tree.repeat(m, K), model)
    for view, variables in views.items():
      self.assertEqual(variables, stack if view in STACKED else model, view)

  @parameterized.parameters(*ALL)
  def test_metrics(self, name, cohort):
    everyone = dict(zip(toys.IDS, toys.SIZES, strict=False))
    for moment in play(name, cohort)[1:4]:
      metrics = dict(moment.metrics)
      who = metrics.pop('cohort')
      self.assertContainsSubset({'train/loss', 'messages_up', 'messages_down'}, metrics)
      for metric, value in metrics.items():
        self.assertEqual((value.shape, value.dtype), ((), np.float32), metric)
        self.assertTrue(np.isfinite(value), metric)
      self.assertGreater(metrics['train/loss'], 0)

      self.assertIsInstance(who, Cohort)
      self.assertEqual([x.dtype for x in who], ['int32', 'float32', 'bool', 'int32', 'int32'])
      self.assertTrue(who.finite.all())
      if TABLE[name].samples:
        self.assertEqual({x.shape for x in who}, {(cohort or K,)})
        self.assertLen(set(who.id.tolist()), cohort or K)
        self.assertEqual(who.size.tolist(), [everyone[i] for i in who.id])

  @parameterized.parameters(*ALL)
  def test_messages_have_a_size(self, name, cohort):
    traffic, metrics = make(name, cohort).traffic, play(name, cohort)[1].metrics
    self.assertIsInstance(traffic, Traffic)
    for way in ('up', 'down'):
      size = getattr(traffic, way)
      self.assertIsInstance(size, int)
      self.assertEqual(size > 0, metrics[f'messages_{way}'] > 0)

  @parameterized.parameters(*ALL)
  def test_loss_falls(self, name, cohort):
    values = [moment.metrics['train/loss'] for moment in play(name, cohort)[1:]]
    self.assertLess(np.mean(values[-5:]), 0.7 * np.mean(values[:2]))

  @parameterized.parameters(*TABLE)
  def test_is_not_plain_averaging(self, name):
    TABLE[name].mark(name)


if __name__ == '__main__':
  absltest.main()
