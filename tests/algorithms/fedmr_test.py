"""Tests of FedMR against its pseudo-code, and of its settings."""

from functools import cache, partial
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax
from reference import fedmr as reference
from reference import rounds, toys

from hmm_jax import tree
from hmm_jax.algorithms import fedmr
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.local import local_training
from hmm_jax.merging import recombine
from hmm_jax.types import Cohort

LR = rounds.LR
STEPS = 2


def make(network=toys.perceptron, train=None, units=recombine.tensors, **settings):
  train = train or local_training(
      losses.supervised(network()), optax.sgd(LR), batch=99, epochs=STEPS)
  return fedmr.fedmr(network(), train, mapper=mappers.one_by_one(), units=units, **settings)


@cache
def program():
  """Returns a compiled round, whose first arguments are the first stage and the dropout."""
  return toys.jit(lambda first_stage, dropout, *given: make(
      toys.norm, rounds.training(toys.norm), participation=3, first_stage=first_stage,
      dropout=dropout).round(*given))


def play(count, first_stage=0, dropout=0.0):
  """Returns states and metrics of rounds with three slots."""
  return rounds.play(make(toys.norm, participation=3), count,
                     program=partial(program(), first_stage, dropout))


class FedMRTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('of_tensors', recombine.tensors, 3, 0, None),
      ('of_layers', recombine.layers, 0, 2, lambda t, count: (np.arange(count) + t) / 16))
  def test_equals_the_pseudo_code(self, units, cohort, first_stage, select):
    unit = units(toys.perceptron(), toys.start(toys.perceptron))
    count = 1 + max(jax.tree.leaves(unit))
    # The permutations are told to the twin; that they are uniform is tested elsewhere.
    tables = np.stack([[np.random.default_rng([r, u]).permutation(cohort or 5)
                        for u in range(count)] for r in range(4)])
    algorithm = make(
        units=units, participation=cohort, first_stage=first_stage, select=select)

    def round_told(table, *given):
      drawn = []

      def told(key, pool, unit, *, returned, chance):
        drawn.append((returned, chance))
        mean = tree.repeat(jax.tree.map(lambda x: x.mean(axis=0), pool), len(returned))
        shuffled = jax.tree.map(lambda u, x: x[table[u]], unit, pool)
        return tree.where(chance.max() == 0, mean, shuffled)

      with mock.patch.object(fedmr, 'recombine', told):
        return *algorithm.round(*given), drawn[0]

    round_told, metrics = toys.jit(round_told), []
    states = [algorithm.init(toys.key(0), rounds.FEDERATION)]
    for r, table in enumerate(tables):
      state, measured, (returned, chance) = round_told(
          table, states[-1], rounds.FEDERATION, toys.key(r))
      states.append(state)
      metrics.append(measured)
      self.assertEqual(returned.tolist(), [True] * (cohort or 5))
      wanted = np.ones(count) if select is None else select(r, count)
      np.testing.assert_allclose(chance, wanted * (r >= first_stage))
    named = toys.twin(jax.tree.map(lambda u: np.asarray(u), unit))
    permutations = [None if r < first_stage else
                    {name: tables[r][int(u)] for name, u in named.items()} for r in range(4)]
    history = reference.fedmr(
        toys.twin(toys.start(toys.perceptron)), toys.tables(rounds.FEDERATION),
        cohorts=rounds.positions(metrics), permutations=permutations, epochs=STEPS, lr=LR)
    for state, (glob, pool) in zip(states[1:], history, strict=True):
      toys.assert_close(toys.twin(algorithm.views(state, rounds.FEDERATION)['global']), glob,
                        rtol=1e-4, atol=1e-5)
      for slot, model in enumerate(pool):
        toys.assert_close(toys.twin(tree.take(state.pool, slot)), model, rtol=1e-4, atol=1e-5)

  def test_clients_come_to_slots_in_random_order(self):
    assignments = rounds.positions(play(30)[1])
    self.assertGreater(len({tuple(a) for a in assignments}), 15)
    for assignment in assignments:
      self.assertLen(set(assignment), 3)
    self.assertLen({assignment[0] for assignment in assignments}, 5)

  def test_the_first_stage_is_uniform_averaging(self):
    states, _ = play(3, first_stage=2)
    expected, _ = rounds.averaged(weigh=sampling.uniform)
    for state, other in zip(states[:3], expected, strict=True):
      for slot in tree.unstack(state.pool):
        toys.assert_close(slot, other.variables)
    spread = max(float(x.std(axis=0).max()) for x in jax.tree.leaves(states[3].pool))
    self.assertGreater(spread, 0.01)

  def test_a_slot_that_does_not_return_keeps_its_model(self):
    states, metrics = play(8, dropout=0.5)
    lost = 0
    for before, after, metric in zip(states, states[1:], metrics, strict=False):
      kept = np.all([np.asarray(a == b).reshape(3, -1).all(axis=1) for a, b in
                     zip(jax.tree.leaves(before.pool), jax.tree.leaves(after.pool))], axis=0)
      # The client without rows returns what it got, to any of the slots that returned.
      self.assertGreaterEqual(kept.sum(), 3 - metric['messages_up'])
      self.assertEqual(metric['messages_down'], 3)
      lost += 3 - metric['messages_up']
    self.assertBetween(lost, 6, 18)

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

    with (mock.patch.object(fedmr.sampling, 'shuffled', shuffled),
          mock.patch.object(fedmr.mappers, 'map_clients', return_value=train),
          mock.patch.object(fedmr, 'recombine', told),
          mock.patch.object(jax.random, 'bernoulli', bernoulli)):
      algorithm = make()
      algorithm.round(algorithm.init(toys.key(0), federation), federation, toys.key(1))
    self.assertLen(used, 5)
    self.assertLen({tuple(jax.random.key_data(key).tolist()) for key in used}, 5)

  def test_messages_are_those_of_federated_averaging(self):
    size = tree.nbytes(jax.eval_shape(toys.norm().init, toys.key(0)))
    self.assertEqual(make(toys.norm).traffic, (size, size))
    for metrics in play(2)[1]:
      self.assertEqual((metrics['messages_up'], metrics['messages_down']), (3, 3))

  def test_chances_grow_over_the_run(self):
    chances = fedmr.by_probability(100, 20, 0.5)
    for t, chance in ((20, 0.0), (30, 0.2), (70, 1.0), (99, 1.0), (3, 0.0)):
      np.testing.assert_allclose(chances(t, 4), [chance] * 4, rtol=1e-6)

  def test_the_central_band_grows_from_the_middle(self):
    central = fedmr.central_band(100, 0, 1.0)
    shares = [central(t, 5).tolist() for t in (0, 10, 50, 79, 81, 100)]
    expected = [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 1, 1, 1, 0],
                [0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    self.assertEqual(shares, expected)
    sooner = fedmr.central_band(100, 20, 0.5)
    self.assertEqual([sooner(20 + t / 2, 5).tolist() for t in (0, 10, 50, 79, 81, 100)], expected)


if __name__ == '__main__':
  absltest.main()
