"""Tests of FedMerge against its steps, and of its laws."""

import itertools

from absl.testing import absltest, parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import fedmerge as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.algorithms import fedavg, fedmerge
from hmm_jax.client import losses, mappers
from hmm_jax.client.initial import initial_models
from hmm_jax.client.local import local_training
from hmm_jax.types import Cohort, InputError

LR = 0.3
STEPS = 2
MU = 0.02
MODELS = 3
SIZES = (6, 3, 0, 8, 1)
SCOPES = {'head': fedmerge.head, 'all': fedmerge.everything}
RULES = {'max_normalized': fedmerge.max_normalized, 'plain': fedmerge.plain}
WEIGHS = {'column': fedmerge.column_normalized, 'none': fedmerge.exact}


def local(network, mu=MU):
  return local_training(losses.proximal(losses.cross_entropy(network()), mu), optax.sgd(LR),
                        batch=99, epochs=STEPS)


def make(network=toys.perceptron, *, train=None, scope='head', rule='max_normalized',
         normalize='column', weight_lr=0.01, **settings):
  return fedmerge.fedmerge(
      network(), train or local(network), mapper=mappers.one_by_one(),
      **{'models': MODELS, 'begin': initial_models, 'scope': SCOPES[scope],
         'rule': RULES[rule], 'optimizer': optax.sgd(weight_lr), 'weigh': WEIGHS[normalize]}
      | settings)


def play(algorithm, federation, rounds, state=None):
  """Returns the states from the start on, and the positions of each round's cohort."""
  states, cohorts = [state or toys.jit(algorithm.init)(toys.key(0), federation)], []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, metrics = program(states[-1], federation, toys.key(r))
    states.append(state)
    cohorts.append([toys.IDS.index(i) for i in metrics['cohort'].id.tolist()])
  return states, cohorts


def twins(stacked):
  return [toys.twin(model) for model in tree.unstack(stacked)]


class FedMergeTest(parameterized.TestCase):

  @parameterized.product(scope=['head', 'all'], cohort=[0, 3], normalize=['column', 'none'])
  def test_equals_the_steps(self, scope, cohort, normalize):
    self.assert_equal_to_twin(
        scope=scope, normalize=normalize, rule='max_normalized', weight_lr=0.3, cohort=cohort)

  @parameterized.parameters('head', 'all')
  def test_equals_the_steps_of_the_plain_rule(self, scope):
    self.assert_equal_to_twin(
        scope=scope, normalize='column', rule='plain', weight_lr=20.0, cohort=2)

  def assert_equal_to_twin(self, *, cohort, **settings):
    federation = toys.federation(SIZES)
    states, cohorts = play(make(participation=cohort, **settings), federation, 3)
    models, logits = reference.fedmerge(
        twins(states[0].models), states[0].logits, toys.tables(federation), cohorts=cohorts,
        epochs=STEPS, lr=LR, mu=MU, **settings)
    self.assertEqual(states[-1].round, 3)
    self.assertGreater(np.abs(logits).max(), 0.1)
    np.testing.assert_allclose(states[-1].logits, logits, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(twins(states[-1].models), models, strict=True):
      toys.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

  @parameterized.parameters('head', 'all')
  def test_one_model_is_federated_averaging_with_a_pull(self, scope):
    federation = toys.federation((6, 3, 5))
    for network in (toys.perceptron, toys.norm):
      states, _ = play(make(network, models=1, scope=scope, participation=2), federation, 3)
      plain = fedavg.fedavg(
          network(), local(network), mapper=mappers.one_by_one(), participation=2)
      expected, _ = play(plain, federation, 3)
      for state, other in zip(states, expected, strict=True):
        toys.assert_close(tree.take(state.models, 0), other.variables, atol=1e-5)
      np.testing.assert_array_equal(states[-1].logits, np.zeros((3, 1)))

  @parameterized.parameters('head', 'all')
  def test_rows_of_the_gradient_sum_to_zero(self, scope):
    # A plain step with rate 1 shows the gradient itself.
    states, _ = play(make(scope=scope, rule='plain', weight_lr=1.0), toys.federation(), 3)
    for before, after in itertools.pairwise(states):
      gradient = np.asarray(before.logits - after.logits)
      self.assertGreater(np.abs(gradient).max(), 1e-3)
      np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-6)

  def test_the_largest_step_of_the_weights_is_the_rate(self):
    states, _ = play(make(weight_lr=0.07), toys.federation(), 2)
    for before, after in itertools.pairwise(states):
      self.assertAlmostEqual(float(np.abs(after.logits - before.logits).max()), 0.07, places=5)

  def test_models_with_equal_weights_move_alike(self):
    states, _ = play(make(rule='plain', weight_lr=1e-12), toys.federation(), 1)
    first, *others = tree.unstack(tree.sub(states[1].models, states[0].models))
    for other in others:
      toys.assert_close(other, first, atol=1e-6)
    toys.assert_far(*tree.unstack(states[1].models)[:2], least=0.1)

  def test_who_is_absent_keeps_its_weights(self):
    federation = toys.federation()
    for optimizer in (optax.sgd(0.1), optax.adam(0.1)):
      states, cohorts = play(make(optimizer=optimizer, participation=2), federation, 4)
      for before, after, cohort in zip(states, states[1:], cohorts, strict=False):
        moved = np.abs(after.logits - before.logits).max(axis=1) > 0
        self.assertEqual(np.flatnonzero(moved).tolist(), sorted(cohort))

  def test_an_optimizer_steps_on_the_weights(self):
    federation = toys.federation()
    plain, _ = play(make(rule='plain', weight_lr=1.0), federation, 1)
    adam, _ = play(make(rule='plain', optimizer=optax.adam(0.1)), federation, 1)
    gradient = plain[0].logits - plain[1].logits
    wanted = -0.1 * np.sign(gradient)
    large = np.abs(gradient) > 1e-5
    self.assertGreater(large.sum(), 10)
    np.testing.assert_allclose(adam[1].logits[large], wanted[large], rtol=1e-2)

  @parameterized.parameters(
      (optax.sgd(0.5, momentum=0.9), 0.9, 0.0),
      (optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.5)), 0.0, 0.3))
  def test_the_optimizer_knows_each_row_and_what_it_did_to_it(self, optimizer, momentum, decay):
    federation = toys.federation()
    algorithm = make(rule='plain', optimizer=optimizer, participation=3)
    states, cohorts = play(algorithm, federation, 4)
    # The same round with a plain step of rate 1 shows the gradient itself.
    plain = make(rule='plain', weight_lr=1.0, participation=3)
    reveal, fresh = toys.jit(plain.round), plain.init(toys.key(0), federation)
    memory = np.zeros((5, MODELS))
    for r, cohort in enumerate(cohorts):
      before = fresh._replace(models=states[r].models, logits=states[r].logits)
      after, _ = reveal(before, federation, toys.key(r))
      gradient = np.asarray(before.logits - after.logits + decay * before.logits)
      memory[cohort] = momentum * memory[cohort] + gradient[cohort]
      moved = states[r + 1].logits - states[r].logits
      np.testing.assert_allclose(moved[np.array(cohort)], -0.5 * memory[cohort], atol=1e-6)
    self.assertGreater(np.abs(memory).max(), 1e-2)
    self.assertNotEqual(set(cohorts[0]), set(cohorts[1]))

  def test_clients_are_given_their_merges(self):
    algorithm, federation = make(weight_lr=0.5), toys.federation()
    states, _ = play(algorithm, federation, 3)
    clients = algorithm.views(states[-1], federation)['clients']
    weights = algorithm.gauges(states[-1])['weight']
    np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=1e-6)
    for k, model in enumerate(tree.unstack(clients)):
      toys.assert_close(toys.twin(model), reference.merge(
          np.asarray(states[-1].logits[k], np.float64), twins(states[-1].models)), atol=1e-5)

  def test_a_variance_is_never_negative(self):
    federation = toys.federation((6, 3))
    algorithm = make(toys.norm)
    start = algorithm.init(toys.key(0), federation)
    variance = np.array([[1e-3] * 4, [5.0] * 4, [5.0] * 4], np.float32)
    norm = start.models['batch_stats']['trunk']['BatchNorm_0'] | {'var': variance}
    models = {**start.models, 'batch_stats': {'trunk': {'BatchNorm_0': norm}}}
    states, _ = play(algorithm, federation, 1, start._replace(models=models))
    norm = states[1].models['batch_stats']['trunk']['BatchNorm_0']
    self.assertEqual(norm['var'].min(), 0)
    self.assertLess(norm['mean'].min(), -0.01)

  def test_messages_are_those_of_federated_averaging(self):
    algorithm = make(participation=2)
    state = algorithm.init(toys.key(0), toys.federation())
    _, metrics = toys.jit(algorithm.round)(state, toys.federation(), toys.key(0))
    size = tree.nbytes(toys.start(toys.perceptron))
    self.assertEqual((algorithm.traffic.up, algorithm.traffic.down), (size, size))
    self.assertEqual((metrics['messages_up'], metrics['messages_down']), (2, 2))

  @parameterized.parameters(
      ({'models': 0}, 'got fedmerge.models=0; expected at least 1'),
      ({'begin': fedmerge.same_start}, 'got fedmerge.start=same with fedmerge.models=3'))
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(InputError, message):
      make(**settings)

  def test_one_model_may_begin_as_any(self):
    algorithm = make(models=1, begin=fedmerge.same_start)
    state = algorithm.init(toys.key(0), toys.federation())
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
    federation = toys.federation()
    start = toys.jit(once.init)(toys.key(0), federation)
    program = toys.jit(once.finish)
    first, _ = program(start, federation, toys.key(9))
    again, _ = program(first, federation, toys.key(9))
    both, _ = toys.jit(twice.finish)(start, federation, toys.key(9))
    toys.assert_far(both.logits, again.logits)

  def test_take_no_part_in_the_run(self):
    states, cohorts = play(make(newcomers=2, newcomer_rounds=3), toys.federation(), 2)
    # The ids are 7, 2, 9, 0 and 4.
    self.assertEqual([sorted(c) for c in cohorts], [[1, 3, 4]] * 2)
    moved = np.abs(states[-1].logits).max(axis=1) > 0
    self.assertEqual(moved.tolist(), [False, True, False, True, True])

  def test_learn_only_their_rows_afterwards(self):
    federation = toys.federation()
    algorithm = make(newcomers=2, newcomer_rounds=3, weight_lr=0.1)
    states, _ = play(algorithm, federation, 2)
    after, metrics = toys.jit(algorithm.finish)(states[-1], federation, toys.key(9))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, states[-1])
    toys.assert_close(after.models, states[-1].models, rtol=0, atol=0)
    change = np.abs(np.asarray(after.logits - states[-1].logits)).max(axis=1)
    self.assertEqual((change > 0).tolist(), [True, False, True, False, False])
    np.testing.assert_allclose(change[[0, 2]], 0.3, atol=0.05)
    self.assertEqual((metrics['messages_up'], metrics['messages_down']), (6, 6))

  def test_weights_grow_towards_the_models_that_fit(self):
    federation = toys.federation((6, 3, 5, 8, 8))
    algorithm = make(newcomers=1, newcomer_rounds=30, weight_lr=0.2, scope='all')
    states, _ = play(algorithm, federation, 8)
    after, _ = toys.jit(algorithm.finish)(states[-1], federation, toys.key(9))
    new = toys.IDS.index(9)
    x, y = toys.tables(federation)[new]
    loss = lambda state: float(reference.two_layer.losses(
        toys.twin(tree.take(algorithm.views(state, federation)['clients'], new)), x, y).mean())
    self.assertLess(loss(after), loss(states[-1]) - 0.01)

  def test_do_not_depend_on_each_other(self):
    federation = toys.federation()
    both = make(newcomers=2, newcomer_rounds=3)
    states, _ = play(both, federation, 2)
    expected, _ = toys.jit(both.finish)(states[-1], federation, toys.key(9))
    other = toys.IDS.index(7)
    emptied = federation._replace(clients=federation.clients._replace(
        size=np.where(np.arange(5) == other, 0, federation.clients.size).astype(np.int32)))
    after, _ = toys.jit(both.finish)(states[-1], emptied, toys.key(9))
    new = toys.IDS.index(9)
    np.testing.assert_allclose(after.logits[new], expected.logits[new], atol=1e-6)
    np.testing.assert_array_equal(after.logits[other], states[-1].logits[other])
    self.assertGreater(float(np.abs(expected.logits[other] - states[-1].logits[other]).max()), 0)


if __name__ == '__main__':
  absltest.main()
