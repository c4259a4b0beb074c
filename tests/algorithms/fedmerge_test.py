"""Tests of FedMerge against its steps, and of its laws."""

from functools import cache

from absl.testing import absltest, parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import fedmerge as reference
from reference import rounds, toys

from hmm_jax import tree
from hmm_jax.algorithms import fedmerge
from hmm_jax.client import losses, mappers
from hmm_jax.client.initial import initial_models
from hmm_jax.client.local import local_training
from hmm_jax.types import Cohort, InputError

LR = rounds.LR
STEPS = 2
MU = 0.02
MODELS = 3
FEDERATION = toys.federation()
SCOPES = {'head': fedmerge.head, 'all': fedmerge.everything}
RULES = {'max_normalized': fedmerge.max_normalized, 'plain': fedmerge.plain}
WEIGHS = {'column': fedmerge.column_normalized, 'none': fedmerge.exact}


def make(network=toys.perceptron, *, train=None, scope='head', rule='max_normalized',
         normalize='column', weight_lr=0.01, **settings):
  train = train or local_training(
      losses.proximal(losses.supervised(network()), MU), optax.sgd(LR), batch=99, epochs=STEPS)
  return fedmerge.fedmerge(
      network(), train, mapper=mappers.one_by_one(),
      **{'models': MODELS, 'begin': initial_models, 'scope': SCOPES[scope],
         'rule': RULES[rule], 'optimizer': optax.sgd(weight_lr), 'weigh': WEIGHS[normalize]}
      | settings)


def play(algorithm, count, *, federation=FEDERATION, state=None):
  """Returns the states from the start on, and the positions of each round's cohort."""
  states, metrics = rounds.play(algorithm, count, federation=federation, state=state)
  return states, rounds.positions(metrics)


@cache
def merged(scope='head', normalize='none', rule='max_normalized', weight_lr=0.3, cohort=3):
  """Plays some rounds with those settings, one client without rows."""
  algorithm = make(scope=scope, normalize=normalize, rule=rule, weight_lr=weight_lr,
                   participation=cohort)
  return algorithm, *rounds.play(algorithm, 3)


def twins(stacked):
  return [toys.twin(model) for model in tree.unstack(stacked)]


class FedMergeTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('of_heads', {'scope': 'head', 'normalize': 'none', 'rule': 'max_normalized',
                    'weight_lr': 0.3}, 3),
      ('of_all', {'scope': 'all', 'normalize': 'column', 'rule': 'plain', 'weight_lr': 20.0}, 2))
  def test_equals_the_steps(self, settings, cohort):
    algorithm, states, metrics = merged(**settings, cohort=cohort)
    models, logits = reference.fedmerge(
        twins(states[0].models), states[0].logits, toys.tables(rounds.FEDERATION),
        cohorts=rounds.positions(metrics), epochs=STEPS, lr=LR, mu=MU, **settings)
    self.assertEqual(states[-1].round, 3)
    self.assertGreater(np.abs(logits).max(), 0.1)
    np.testing.assert_allclose(states[-1].logits, logits, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(twins(states[-1].models), models, strict=True):
      toys.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    # Clients are given their merges.
    clients = algorithm.views(states[-1], rounds.FEDERATION)['clients']
    np.testing.assert_allclose(
        algorithm.gauges(states[-1])['weight'].sum(axis=1), 1, rtol=1e-6)
    for row, model in zip(logits, tree.unstack(clients), strict=True):
      toys.assert_close(toys.twin(model), reference.merge(row, models), atol=1e-5)

  def test_one_model_is_federated_averaging(self):
    algorithm = make(toys.norm, train=rounds.training(toys.norm), models=1, scope='all',
                     participation=3)
    states, metrics = rounds.play(algorithm, 2)
    expected, reports = rounds.averaged()
    for state, other in zip(states, expected, strict=True):
      toys.assert_close(tree.take(state.models, 0), other.variables, atol=1e-5)
    toys.assert_close(metrics, reports)
    np.testing.assert_array_equal(states[-1].logits, np.zeros((5, 1)))

  def test_the_optimizer_knows_each_row_and_what_it_did_to_it(self):
    optimizer = optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.5, momentum=0.9))
    states, cohorts = play(make(rule='plain', optimizer=optimizer, participation=3), 4)
    # The same round with a plain step of rate 1 shows the gradient itself.
    plain = make(rule='plain', weight_lr=1.0, participation=3)
    reveal, fresh = toys.jit(plain.round), plain.init(toys.key(0), FEDERATION)
    memory = np.zeros((5, MODELS))
    for r, cohort in enumerate(cohorts):
      before = fresh._replace(models=states[r].models, logits=states[r].logits)
      after, _ = reveal(before, FEDERATION, toys.key(r))
      gradient = np.asarray(before.logits - after.logits + 0.3 * before.logits)
      memory[cohort] = 0.9 * memory[cohort] + gradient[cohort]
      moved = np.asarray(states[r + 1].logits - states[r].logits)
      np.testing.assert_allclose(moved[cohort], -0.5 * memory[cohort], atol=1e-6)
      # Who is absent keeps its weights.
      self.assertEqual(np.flatnonzero(np.abs(moved).max(axis=1)).tolist(), sorted(cohort))
    self.assertGreater(np.abs(memory).max(), 1e-2)
    self.assertNotEqual(set(cohorts[0]), set(cohorts[1]))

  @pytest.mark.slow
  def test_a_variance_is_never_negative(self):
    federation = toys.federation((6, 3))
    algorithm = make(toys.norm)
    start = algorithm.init(toys.key(0), federation)
    variance = np.array([[1e-3] * 4, [5.0] * 4, [5.0] * 4], np.float32)
    norm = start.models['batch_stats']['trunk']['BatchNorm_0'] | {'var': variance}
    models = {**start.models, 'batch_stats': {'trunk': {'BatchNorm_0': norm}}}
    states, _ = play(algorithm, 1, federation=federation, state=start._replace(models=models))
    norm = states[1].models['batch_stats']['trunk']['BatchNorm_0']
    self.assertEqual(norm['var'].min(), 0)
    self.assertLess(norm['mean'].min(), -0.01)

  def test_messages_are_those_of_federated_averaging(self):
    algorithm, _, metrics = merged()
    size = tree.nbytes(jax.eval_shape(toys.perceptron().init, toys.key(0)))
    self.assertEqual(algorithm.traffic, (size, size))
    self.assertEqual((metrics[0]['messages_up'], metrics[0]['messages_down']), (3, 3))

  @parameterized.parameters(
      ({'models': 0}, 'got models=0'),
      ({'begin': fedmerge.same_init}, 'got start=same with models=3'))
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(InputError, message):
      make(**settings)

  def test_one_model_may_begin_as_any(self):
    algorithm = make(models=1, begin=fedmerge.same_init)
    state = algorithm.init(toys.key(0), FEDERATION)
    toys.assert_close(tree.take(state.models, 0), toys.start(toys.perceptron))

  def test_a_model_that_nobody_weighs_stays(self):
    mixing = jnp.array([[0.2, 0, 0.3], [0.6, 0, 0.1]])
    toys.assert_close(fedmerge.column_normalized(mixing),
                      np.array([[0.25, 0, 0.75], [0.75, 0, 0.25]]))
    toys.assert_close(fedmerge.exact(mixing), mixing)

  def test_steps_of_no_gradient_are_none(self):
    toys.assert_close(fedmerge.max_normalized(jnp.zeros((2, 3))), np.zeros((2, 3)))
    gradient = jnp.array([[0.5, -2], [1, 0]])
    toys.assert_close(fedmerge.max_normalized(gradient), gradient / 2)
    toys.assert_close(fedmerge.plain(gradient), gradient)


@cache
def joined():
  """Plays two rounds in which two newcomers take no part."""
  algorithm = make(newcomers=2, newcomer_rounds=3, weight_lr=0.1, scope='all')
  return algorithm, *play(algorithm, 2)


class NewcomersTest(parameterized.TestCase):

  def test_without_them_there_is_nothing_to_finish(self):
    self.assertIsNone(make().finish)

  def test_every_round_of_theirs_has_a_key_of_its_own(self):
    def at_random(start, examples, client, extra, key):
      draw = jax.random.normal(key)
      trained = jax.tree.map(lambda x: x + draw, start)
      return trained, extra, Cohort(client.id, draw, True, client.size, 1)

    once, twice = (make(train=at_random, rule='plain', weight_lr=1.0, newcomers=1,
                        newcomer_rounds=rounds) for rounds in (1, 2))
    start = once.init(toys.key(0), FEDERATION)
    program = toys.jit(once.finish)
    first, _ = program(start, FEDERATION, toys.key(9))
    again, _ = program(first, FEDERATION, toys.key(9))
    both, _ = toys.jit(twice.finish)(start, FEDERATION, toys.key(9))
    toys.assert_far(both.logits, again.logits)

  def test_take_no_part_in_the_run(self):
    _, states, cohorts = joined()
    # The ids are 7, 2, 9, 0 and 4.
    self.assertEqual([sorted(c) for c in cohorts], [[1, 3, 4]] * 2)
    moved = np.abs(states[-1].logits).max(axis=1) > 0
    self.assertEqual(moved.tolist(), [False, True, False, True, True])

  def test_learn_only_their_rows_afterwards(self):
    algorithm, states, _ = joined()
    after, metrics = rounds.compiled(algorithm.finish)(states[-1], FEDERATION, toys.key(9))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, states[-1])
    toys.assert_close(after.models, states[-1].models, rtol=0, atol=0)
    change = np.abs(np.asarray(after.logits - states[-1].logits)).max(axis=1)
    self.assertEqual((change > 0).tolist(), [True, False, True, False, False])
    np.testing.assert_allclose(change[[0, 2]], 0.3, atol=0.05)
    self.assertEqual((metrics['messages_up'], metrics['messages_down']), (6, 6))

  def test_weights_grow_towards_the_models_that_fit(self):
    algorithm, states, _ = joined()
    # Models that differ clearly.
    apart = states[-1]._replace(models=jax.tree.map(
        lambda x: 3 * x, initial_models(toys.perceptron(), toys.key(3), MODELS)))
    after, _ = rounds.compiled(algorithm.finish)(apart, FEDERATION, toys.key(9))
    for new in (0, 2):
      x, y = toys.tables(FEDERATION)[new]
      before, then = (float(reference.two_layer.losses(toys.twin(tree.take(
          algorithm.views(state, FEDERATION)['clients'], new)), x, y).mean())
                      for state in (apart, after))
      self.assertLess(then, before - 0.01)

  def test_do_not_depend_on_each_other(self):
    algorithm, states, _ = joined()
    finish = rounds.compiled(algorithm.finish)
    expected, _ = finish(states[-1], FEDERATION, toys.key(9))
    new, other = toys.IDS.index(9), toys.IDS.index(7)
    emptied = FEDERATION._replace(clients=FEDERATION.clients._replace(
        size=np.where(np.arange(5) == other, 0, FEDERATION.clients.size).astype(np.int32)))
    after, _ = finish(states[-1], emptied, toys.key(9))
    np.testing.assert_allclose(after.logits[new], expected.logits[new], atol=1e-6)
    np.testing.assert_array_equal(after.logits[other], states[-1].logits[other])
    self.assertGreater(float(np.abs(expected.logits[other] - states[-1].logits[other]).max()), 0)


if __name__ == '__main__':
  absltest.main()
