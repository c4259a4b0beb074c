"""Tests of FedMR against its pseudo-code, and of its settings."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax
from reference import fedavg as averaging
from reference import fedmr as reference
from reference import toys, two_layer

from hmm_jax import tree
from hmm_jax.algorithms import fedavg, fedmr
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.local import local_training
from hmm_jax.merging import recombine
from hmm_jax.types import Cohort

LR = 0.3
STEPS = 2
SIZES = (6, 3, 0, 8, 1)


def local(network, **loop):
  return local_training(losses.cross_entropy(network()), optax.sgd(LR),
                        **{'batch': 99, 'epochs': STEPS} | loop)


def make(network=toys.perceptron, units=recombine.tensors, **settings):
  return fedmr.fedmr(network(), local(network), mapper=mappers.one_by_one(), units=units,
                     **settings)


def play(algorithm, federation, rounds):
  """Returns the states from the start on, and the metrics of the rounds."""
  states, metrics = [toys.jit(algorithm.init)(toys.key(0), federation)], []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, metric = program(states[-1], federation, toys.key(r))
    states.append(state)
    metrics.append(metric)
  return states, metrics


def slots(metrics):
  """Returns the client in each slot, round by round."""
  return [[toys.IDS.index(i) for i in m['cohort'].id.tolist()] for m in metrics]


class FedMRTest(parameterized.TestCase):

  @parameterized.product(
      units=[recombine.tensors, recombine.layers], cohort=[0, 3], first_stage=[0, 2])
  def test_equals_the_pseudo_code(self, units, cohort, first_stage):
    federation, drawn = toys.federation(SIZES), []
    network = toys.perceptron()
    unit = units(network, toys.start(toys.perceptron))
    count = 1 + max(jax.tree.leaves(unit))
    # The permutations are told to the twin; that they are uniform is tested elsewhere.
    tables = np.stack([[np.random.default_rng([r, u]).permutation(cohort or 5)
                        for u in range(count)] for r in range(4)])

    def told(key, pool, unit, *, returned, chance):
      drawn.append((returned.tolist(), chance.tolist()))
      if chance[0] == 0:
        mean = tree.mix(np.full(len(returned), 1 / len(returned), np.float32), pool)
        return tree.repeat(mean, len(returned))
      table = tables[len(drawn) - 1]
      return jax.tree.map(lambda u, x: x[table[u]], unit, pool)

    algorithm = make(units=units, participation=cohort, first_stage=first_stage)
    state, states, metrics = algorithm.init(toys.key(0), federation), [], []
    with mock.patch.object(fedmr, 'recombine', told):
      for r in range(4):
        state, metric = algorithm.round(state, federation, toys.key(r))
        states.append(state)
        metrics.append(metric)
    named = toys.twin(jax.tree.map(lambda u: np.asarray(u), unit))
    permutations = [None if r < first_stage else
                    {name: tables[r][int(u)] for name, u in named.items()} for r in range(4)]
    history = reference.fedmr(
        toys.twin(toys.start(toys.perceptron)), toys.tables(federation), cohorts=slots(metrics),
        permutations=permutations, epochs=STEPS, lr=LR)
    for state, (glob, pool) in zip(states, history, strict=True):
      toys.assert_close(toys.twin(algorithm.views(state, federation)['global']), glob,
                        rtol=1e-4, atol=1e-5)
      for slot, model in enumerate(pool):
        toys.assert_close(toys.twin(tree.take(state.pool, slot)), model, rtol=1e-4, atol=1e-5)
    self.assertEqual(drawn, [
        ([True] * (cohort or 5), [float(r >= first_stage)] * count) for r in range(4)])

  @parameterized.parameters(0, 3)
  def test_clients_come_to_slots_in_random_order(self, cohort):
    _, metrics = play(make(participation=cohort), toys.federation(SIZES), 30)
    assignments = slots(metrics)
    self.assertGreater(len({tuple(a) for a in assignments}), 15)
    for assignment in assignments:
      self.assertLen(set(assignment), cohort or 5)
    self.assertLen({assignment[0] for assignment in assignments}, 5)

  def test_one_slot_is_sequential_training(self):
    federation = toys.federation(SIZES)
    states, metrics = play(make(participation=1), federation, 4)
    params = toys.twin(toys.start(toys.perceptron))
    for state, [k] in zip(states[1:], slots(metrics), strict=True):
      x, y = toys.tables(federation)[k]
      params = averaging.client_update(
          params, x, y, averaging.full_batches(y, STEPS), lr=LR, gradient=two_layer.gradient)
      toys.assert_close(toys.twin(tree.take(state.pool, 0)), params, rtol=1e-4, atol=1e-5)

  def test_the_first_stage_is_uniform_averaging(self):
    federation = toys.federation(SIZES)
    states, _ = play(make(first_stage=3), federation, 4)
    plain = fedavg.fedavg(toys.perceptron(), local(toys.perceptron), mapper=mappers.one_by_one(),
                          weigh=sampling.uniform)
    expected, _ = play(plain, federation, 3)
    for state, other in zip(states[:4], expected, strict=True):
      for slot in tree.unstack(state.pool):
        toys.assert_close(slot, other.variables)
    spread = max(float(x.std(axis=0).max()) for x in jax.tree.leaves(states[4].pool))
    self.assertGreater(spread, 0.01)

  def test_a_slot_that_does_not_return_keeps_its_model(self):
    federation = toys.federation(SIZES)
    states, metrics = play(make(dropout=0.5), federation, 6)
    lost = 0
    for before, after, metric in zip(states, states[1:], metrics, strict=False):
      kept = np.all([np.asarray(a == b).reshape(5, -1).all(axis=1) for a, b in
                     zip(jax.tree.leaves(before.pool), jax.tree.leaves(after.pool))], axis=0)
      # The client without rows returns what it got, to any of the slots that returned.
      self.assertGreaterEqual(kept.sum(), 5 - metric['messages_up'])
      self.assertEqual(metric['messages_down'], 5)
      lost += 5 - metric['messages_up']
    self.assertBetween(lost, 6, 24)

  def test_no_key_serves_two_draws(self):
    used, federation = [toys.key(1)], toys.federation((6, 3))

    def shuffled(clients, count, key):
      used.append(key)
      return np.arange(2), clients

    def train(start, examples, clients, extra, key):
      used.append(key)
      return start, extra, Cohort(
          clients.id, np.zeros(2), np.ones(2, bool), clients.size, np.ones(2, int))

    def bernoulli(key, *args):
      used.append(key)
      return np.ones(2, bool)

    def told(key, pool, unit, **settings):
      used.append(key)
      return pool

    with (mock.patch.object(fedmr.participate, 'shuffled', shuffled),
          mock.patch.object(fedmr.mappers, 'map_clients', return_value=train),
          mock.patch.object(fedmr, 'recombine', told),
          mock.patch.object(jax.random, 'bernoulli', bernoulli)):
      algorithm = make()
      algorithm.round(algorithm.init(toys.key(0), federation), federation, toys.key(1))
    self.assertLen(used, 5)
    self.assertLen({tuple(jax.random.key_data(key).tolist()) for key in used}, 5)

  def test_messages_are_those_of_federated_averaging(self):
    algorithm = make(participation=2)
    _, [metrics] = play(algorithm, toys.federation(SIZES), 1)
    size = tree.nbytes(toys.start(toys.perceptron))
    self.assertEqual((algorithm.traffic.up, algorithm.traffic.down), (size, size))
    self.assertEqual((metrics['messages_up'], metrics['messages_down']), (2, 2))

  def test_chances_grow_over_the_run(self):
    softly = fedmr.softly(100, 20, 0.5)
    for t, chance in ((20, 0.0), (30, 0.2), (70, 1.0), (99, 1.0), (3, 0.0)):
      np.testing.assert_allclose(softly(t, 4), [chance] * 4, rtol=1e-6)

  def test_the_central_band_grows_from_the_middle(self):
    central = fedmr.central(100, 0, 1.0)
    shares = [central(t, 5).tolist() for t in (0, 10, 50, 79, 81, 100)]
    expected = [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 1, 1, 1, 0],
                [0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    self.assertEqual(shares, expected)
    sooner = fedmr.central(100, 20, 0.5)
    self.assertEqual([sooner(20 + t / 2, 5).tolist() for t in (0, 10, 50, 79, 81, 100)], expected)

  def test_chances_reach_the_recombination(self):
    federation, seen = toys.federation(SIZES), []
    real = fedmr.recombine

    def watch(*args, **kwargs):
      seen.append(kwargs['chance'].tolist())
      return real(*args, **kwargs)

    algorithm = make(first_stage=1, select=lambda t, count: np.arange(count) / 8 + t / 16)
    state = algorithm.init(toys.key(0), federation)
    with mock.patch.object(fedmr, 'recombine', watch):
      for r in range(3):
        state, _ = algorithm.round(state, federation, toys.key(r))
    self.assertEqual(seen, [[0] * 4, [1 / 16, 3 / 16, 5 / 16, 7 / 16],
                            [2 / 16, 4 / 16, 6 / 16, 8 / 16]])


if __name__ == '__main__':
  absltest.main()
