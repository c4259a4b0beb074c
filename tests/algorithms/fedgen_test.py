"""Tests of FedGen against its pseudo-code."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import fedgen as reference
from reference import softmax_regression, toys

from hmm_jax import tree
from hmm_jax.algorithms import fedavg, fedgen
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.models.generator import generator as perceptron
from hmm_jax.types import Batch, InputError

LR = 0.3
EPOCHS = 2
BATCH = 6
ROUNDS = 4
SIZES = (6, 3, 0, 8, 1)
SERVER = {'learning_rate': 0.3, 'momentum': 0.5}


@cache
def generator(features=5):
  """Returns a generator for the heads of toys.perceptron."""
  return perceptron(classes=toys.CLASSES, features=features, hidden=7, noise=2)


def taught(network=toys.perceptron, features=5):
  return fedgen.taught(
      losses.cross_entropy(network()), network(), generator(features), batch=BATCH)


def training(loss, **batches):
  return local_training(loss, optax.sgd(LR), **batches or {'batch': 99, 'epochs': EPOCHS})


def make(*, network=toys.perceptron, features=5, batches=None, **settings):
  settings = {'server': optax.sgd(**SERVER), 'steps': 3, 'batch': BATCH, **settings}
  return fedgen.fedgen(
      network(), training(taught(network, features), **batches or {}),
      generator=generator(features), mapper=mappers.one_by_one(), **settings)


def play(algorithm, federation, rounds=ROUNDS):
  """Returns (all states, the positions of each round's cohort, the last metrics)."""
  states, cohorts = [toys.jit(algorithm.init)(toys.key(0), federation)], []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, metrics = program(states[-1], federation, toys.key(r))
    states.append(state)
    cohorts.append([toys.IDS.index(i) for i in metrics['cohort'].id.tolist()])
  return states, cohorts, metrics


def twin(params):
  """Returns the generator's parameters as its NumPy twin names them."""
  return {f'{name}_{layer}': np.asarray(params['params'][f'Dense_{layer}'][name], np.float64)
          for name in ('kernel', 'bias') for layer in (0, 1)}


def draws(key, counts):
  """Returns (labels, noise); any class is as likely where none has been counted."""
  label_key, noise_key = jax.random.split(key)
  logits = jnp.log(np.float32(counts)) if np.any(counts) else jnp.zeros(toys.CLASSES)
  labels = jax.random.categorical(label_key, logits, shape=(BATCH,))
  _, noise = generator().apply(generator().init(toys.key(0)), labels, noise_key)
  return np.asarray(labels), np.asarray(noise, np.float64)


def lesson(r, k, epoch, counts):
  """Returns what client k draws: its key follows its id, then the epoch, then the step."""
  key = mappers.client_key(jax.random.split(toys.key(r), 3)[1], toys.IDS[k])
  step_key = jax.random.fold_in(jax.random.fold_in(key, epoch), 0)
  return draws(jax.random.fold_in(step_key, 2), counts)


def exam(r, step, counts):
  return draws(jax.random.split(jax.random.split(toys.key(r), 3)[2], 3)[step], counts)


def heads(count, seed=0):
  """Returns heads for toys.perceptron: a stack, and a list for the twin."""
  rng = np.random.default_rng(seed)
  stacked = {'kernel': rng.normal(size=(count, 5, 3)), 'bias': rng.normal(size=(count, 3))}
  return jax.tree.map(np.float32, stacked), tree.unstack(stacked)


def ensemble(stacked):
  """Returns the logits of a stack of heads."""
  return lambda z: jnp.einsum('bf,kfc->kbc', z, stacked['kernel']) + stacked['bias'][:, None]


COUNTS = np.array([[4, 0, 1], [2, 0, 5]], np.float32)  # Nobody holds class 1.


class FedGenTest(parameterized.TestCase):

  @parameterized.parameters(
      {'alpha': 10.0, 'decay': 0.98, 'participation': 0},
      {'alpha': 1.0, 'decay': 0.5, 'participation': 2})
  def test_equals_the_pseudo_code(self, participation, **settings):
    federation = toys.federation(SIZES)
    states, cohorts, _ = play(make(participation=participation, **settings), federation)
    self.assertLen(set().union(*cohorts), 5)
    params, taught_generator, known = reference.fedgen(
        toys.twin(toys.start(toys.perceptron)), twin(states[0].generator),
        toys.tables(federation), cohorts=cohorts, classes=toys.CLASSES, epochs=EPOCHS, lr=LR,
        steps=3, server_lr=0.3, momentum=0.5, lesson=lesson, exam=exam, **settings)
    close = {'rtol': 1e-3, 'atol': 1e-4}
    toys.assert_close(toys.twin(states[-1].variables), params, **close)
    toys.assert_close(twin(states[-1].generator), taught_generator, **close)
    self.assertEqual(states[-1].counts.tolist(), known)

  def test_generator_loss_by_hand(self):
    start, (stacked, apart) = generator().init(toys.key(1)), heads(2)
    loss = lambda params: fedgen.generator_loss(
        params, generator(), ensemble(stacked), COUNTS, toys.key(3), batch=BATCH)
    value, gradient = toys.jit(jax.value_and_grad(loss))(start)
    drawn = draws(toys.key(3), COUNTS.sum(axis=0))
    self.assertEqual(set(drawn[0].tolist()), {0, 2})
    given = twin(start), apart, COUNTS.tolist(), *drawn
    toys.assert_close(value, reference.generator_loss(*given), rtol=1e-5)
    toys.assert_close(twin(gradient), reference.generator_gradient(*given), rtol=1e-4, atol=1e-6)

  def test_gradient_of_the_twin_is_that_of_its_loss(self):
    params, (_, apart) = twin(generator().init(toys.key(1))), heads(2)
    given = apart, COUNTS.tolist(), *draws(toys.key(3), COUNTS.sum(axis=0))
    slope, step = reference.generator_gradient(params, *given), 1e-6
    for name, index in (('kernel_0', (1, 2)), ('bias_0', (3,)), ('kernel_1', (2, 1))):
      ends = []
      for sign in (-1, 1):
        moved = {n: v.copy() for n, v in params.items()}
        moved[name][index] += sign * step
        ends.append(reference.generator_loss(moved, *given))
      np.testing.assert_allclose(
          slope[name][index], (ends[1] - ends[0]) / (2 * step), rtol=1e-4, atol=1e-8)

  def test_a_round_lowers_the_loss_of_the_generator(self):
    algorithm = make(steps=50, server=optax.adam(1e-2))
    federation = toys.federation()
    (before, after), _, _ = play(algorithm, federation, rounds=1)
    stacked, counts = heads_of_the_first_round(federation)
    loss = toys.jit(lambda params: fedgen.generator_loss(
        params, generator(), ensemble(stacked), counts, toys.key(9), batch=200))
    self.assertLess(loss(after.generator), 0.8 * loss(before.generator))

  def test_labels_are_drawn_by_their_counts(self):
    params = generator().init(toys.key(0))
    labels = toys.jit(lambda counts: fedgen.generate(
        generator(), params, counts, toys.key(1), 4000)[0])
    draw = lambda counts: np.bincount(np.asarray(labels(np.float32(counts))), minlength=3)
    np.testing.assert_allclose(draw([6, 0, 2]) / 4000, [0.75, 0, 0.25], atol=0.03)
    self.assertEqual(draw([6, 0, 2])[1], 0)
    # Nobody holds anything: every class is as likely, and the loss is a number.
    np.testing.assert_allclose(draw([0, 0, 0]) / 4000, 1 / 3, atol=0.03)
    loss = lambda params: fedgen.generator_loss(
        params, generator(), ensemble(heads(2)[0]), np.zeros_like(COUNTS), toys.key(1), batch=BATCH)
    self.assertTrue(tree.all_finite(toys.jit(jax.value_and_grad(loss))(params)))

  def test_lessons_by_hand(self):
    variables, params = toys.start(toys.perceptron), generator().init(toys.key(1))
    rng = np.random.default_rng(0)
    batch = Batch(np.float32(rng.normal(size=(4, 4))), np.array([0, 2, 1, 1]),
                  np.array([True, True, False, True]))
    counts, key = np.float32([3, 0, 1]), toys.key(5)
    # What is wrapped draws as it would alone, and is not told of the generator.
    def noisy(params, statistics, batch, start, extra, key):
      self.assertEqual(extra, ())
      value, (variables, report) = losses.cross_entropy(toys.perceptron())(
          params, statistics, batch, start, extra, key)
      return value + jax.random.uniform(key), (variables, report)

    plain, (_, plain_report) = noisy(variables['params'], {}, batch, None, (), key)
    wrapped = fedgen.taught(noisy, toys.perceptron(), generator(), batch=BATCH)
    value, (_, report) = wrapped(
        variables['params'], {}, batch, None, (jnp.float32(0.7), counts, params), key)
    labels, noise = draws(jax.random.fold_in(key, 2), counts)
    _, _, z = reference.generate(twin(params), labels, noise, toys.CLASSES)
    rows = softmax_regression.losses(toys.twin(variables), z, labels)
    toys.assert_close(value - plain, 0.7 * rows.mean(), rtol=1e-4)
    toys.assert_close(report, plain_report)

  @parameterized.parameters((toys.perceptron, 5, 0), (toys.perceptron, 5, 2), (toys.norm, 4, 0))
  def test_without_lessons_it_is_fedavg(self, network, features, participation):
    federation, batches = toys.federation(SIZES), {'batch': 4, 'epochs': 2}
    on = {'network': network, 'features': features, 'participation': participation}
    states, _, metrics = play(make(alpha=0.0, batches=batches, **on), federation)
    plain = fedavg.fedavg(
        network(), training(losses.cross_entropy(network()), **batches),
        mapper=mappers.one_by_one(), participation=participation)
    others, _, plain_metrics = play(plain, federation)
    toys.assert_close(states[-1].variables, others[-1].variables)
    toys.assert_close(metrics, plain_metrics)

  def test_lessons_begin_in_the_second_round(self):
    plain, taught_ = (play(make(**settings), toys.federation(), rounds=2)[0]
                      for settings in ({'alpha': 0.0}, {}))
    toys.assert_close(plain[1], taught_[1])
    toys.assert_far(plain[2].variables, taught_[2].variables, least=0.01)

  def test_keeps_the_heads_only(self):
    kept, inner = [], mappers.one_by_one()

    def mix(*args):
      mixed, rest = inner.mix(*args)
      kept.append(rest[0])
      return mixed, rest

    federation = toys.federation()
    algorithm = fedgen.fedgen(
        toys.perceptron(), training(taught()), generator=generator(), server=optax.sgd(1.0),
        mapper=mappers.Mapper(None, mix))
    state = jax.eval_shape(algorithm.init, toys.key(0), federation)
    jax.eval_shape(algorithm.round, state, federation, toys.key(0))
    self.assertEqual([leaf.shape for leaf in jax.tree.leaves(kept)], [(5, 3), (5, 5, 3)])

  def test_the_published_settings_are_the_defaults(self):
    federation = toys.federation()
    make_ = lambda **settings: fedgen.fedgen(
        toys.perceptron(), training(fedgen.taught(
            losses.cross_entropy(toys.perceptron()), toys.perceptron(), generator(),
            **{k: v for k, v in settings.items() if k == 'batch'})),
        generator=generator(), server=optax.sgd(**SERVER), mapper=mappers.one_by_one(),
        **settings)
    states, *_ = play(make_(), federation, rounds=2)
    wanted, *_ = play(make_(alpha=10.0, decay=0.98, steps=50, batch=32), federation, rounds=2)
    toys.assert_close(states[-1], wanted[-1])

  def test_traffic_is_a_model_and_on_the_way_down_a_generator(self):
    traffic, size = make(network=toys.norm, features=4).traffic, tree.nbytes(
        toys.start(toys.norm))
    # 2 numbers and 3 classes, 7 hidden units, 4 features.
    self.assertEqual((traffic.up, traffic.down), (size, size + 4 * (6 * 7 + 8 * 4)))

  @parameterized.parameters(
      {'alpha': -1.0}, {'decay': 0.0}, {'decay': 1.1}, {'steps': 0}, {'batch': 0})
  def test_refuses(self, **settings):
    with self.assertRaisesRegex(InputError, 'got fedgen.alpha='):
      make(**settings)


def heads_of_the_first_round(federation):
  """Returns the heads of all clients after a round of plain training, and their counts."""
  trained, _, _ = mappers.map_clients(
      training(losses.cross_entropy(toys.perceptron())), mappers.one_by_one())(
          toys.start(toys.perceptron), federation.examples, federation.clients, (),
          jax.random.split(toys.key(0), 3)[1])
  counts = [reference.label_counts(y, toys.CLASSES) for _, y in toys.tables(federation)]
  return trained['params']['head'], np.array(counts, np.float32)


if __name__ == '__main__':
  absltest.main()
