"""Tests of FedGen against its pseudo-code."""

from functools import cache
import inspect

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import fedgen as reference
from reference import rounds, softmax_regression, toys

from hmm_jax import tree
from hmm_jax.algorithms import fedgen
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.models.generator import generator as perceptron
from hmm_jax.types import Batch, InputError

LR = rounds.LR
EPOCHS = 2
BATCH = 6
SERVER = {'learning_rate': 0.3, 'momentum': 0.5}


@cache
def generator(features=5):
  """Returns a generator for the heads of toys.perceptron."""
  return perceptron(classes=toys.CLASSES, features=features, hidden=7, noise=2)


def taught(network=toys.perceptron, features=5):
  return fedgen.taught(
      losses.supervised(network()), network(), generator(features), batch=BATCH)


def make(*, network=toys.perceptron, features=5, train=None, **settings):
  settings = {'server': optax.sgd(**SERVER), 'steps': 3, 'batch': BATCH, **settings}
  train = train or local_training(
      taught(network, features), optax.sgd(LR), batch=99, epochs=EPOCHS)
  return fedgen.fedgen(network(), train, generator=generator(features),
                       mapper=mappers.one_by_one(), **settings)


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


@cache
def generator_loss():
  """Returns the loss of the generator and its gradient, compiled: (parameters, counts)."""
  loss = lambda params, counts: fedgen.generator_loss(
      params, generator(), ensemble(heads(2)[0]), counts, toys.key(3), batch=BATCH)
  return toys.jit(jax.value_and_grad(loss))


COUNTS = np.array([[4, 0, 1], [2, 0, 5]], np.float32)  # Nobody holds class 1.


class FedGenTest(parameterized.TestCase):

  def test_equals_the_pseudo_code(self):
    settings = {'alpha': 1.0, 'decay': 0.5}
    states, metrics = rounds.play(make(participation=2, **settings), 4)
    cohorts = rounds.positions(metrics)
    self.assertLen(set().union(*cohorts), 5)
    params, taught_generator, known = reference.fedgen(
        toys.twin(toys.start(toys.perceptron)), twin(states[0].generator),
        toys.tables(rounds.FEDERATION), cohorts=cohorts, classes=toys.CLASSES, epochs=EPOCHS,
        lr=LR, steps=3, server_lr=0.3, momentum=0.5, lesson=lesson, exam=exam, **settings)
    close = {'rtol': 1e-3, 'atol': 1e-4}
    toys.assert_close(toys.twin(states[-1].variables), params, **close)
    toys.assert_close(twin(states[-1].generator), taught_generator, **close)
    self.assertEqual(states[-1].counts.tolist(), known)

  def test_generator_loss_by_hand(self):
    start, (_, apart) = generator().init(toys.key(1)), heads(2)
    value, gradient = generator_loss()(start, COUNTS)
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

  def test_labels_are_drawn_by_their_counts(self):
    params = generator().init(toys.key(0))
    labels = toys.jit(lambda counts: fedgen.generate(
        generator(), params, counts, toys.key(1), 4000)[0])
    draw = lambda counts: np.bincount(np.asarray(labels(np.float32(counts))), minlength=3)
    np.testing.assert_allclose(draw([6, 0, 2]) / 4000, [0.75, 0, 0.25], atol=0.03)
    self.assertEqual(draw([6, 0, 2])[1], 0)
    # Nobody holds anything: every class is as likely, and the loss is a number.
    np.testing.assert_allclose(draw([0, 0, 0]) / 4000, 1 / 3, atol=0.03)
    self.assertTrue(tree.all_finite(generator_loss()(params, np.zeros_like(COUNTS))))

  def test_lessons_by_hand(self):
    variables, params = toys.start(toys.perceptron), generator().init(toys.key(1))
    rng = np.random.default_rng(0)
    batch = Batch(np.float32(rng.normal(size=(4, 4))), np.array([0, 2, 1, 1]),
                  np.array([True, True, False, True]))
    counts, key = np.float32([3, 0, 1]), toys.key(5)
    # What is wrapped draws as it would alone, and is not told of the generator.
    def noisy(params, statistics, batch, start, extra, key):
      self.assertEqual(extra, ())
      value, (variables, report) = losses.supervised(toys.perceptron())(
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

  def test_without_lessons_it_is_fedavg(self):
    train = local_training(taught(toys.norm, 4), rounds.OPTIMIZER, batch=2, epochs=2)
    states, metrics = rounds.play(
        make(alpha=0.0, network=toys.norm, features=4, train=train, participation=3), 2)
    expected, reports = rounds.averaged()
    toys.assert_close(states[-1].variables, expected[-1].variables)
    toys.assert_close(metrics, reports)

  def test_keeps_the_heads_only(self):
    kept, inner = [], mappers.one_by_one()

    def mix(*args):
      mixed, rest = inner.mix(*args)
      kept.append(rest[0])
      return mixed, rest

    federation = toys.federation()
    train = local_training(taught(), optax.sgd(LR), batch=99)
    algorithm = fedgen.fedgen(
        toys.perceptron(), train, generator=generator(), server=optax.sgd(1.0),
        mapper=mappers.Mapper(None, mix))
    state = jax.eval_shape(algorithm.init, toys.key(0), federation)
    jax.eval_shape(algorithm.round, state, federation, toys.key(0))
    self.assertEqual([leaf.shape for leaf in jax.tree.leaves(kept)], [(5, 3), (5, 5, 3)])

  def test_the_published_settings_are_the_defaults(self):
    defaults = lambda made, *names: [inspect.signature(made).parameters[n].default for n in names]
    self.assertEqual(
        defaults(fedgen.fedgen, 'alpha', 'decay', 'steps', 'batch'), [10, 0.98, 50, 32])
    self.assertEqual(defaults(fedgen.taught, 'batch'), [32])

  def test_traffic_is_a_model_and_on_the_way_down_a_generator(self):
    traffic = make(network=toys.norm, features=4).traffic
    size = tree.nbytes(jax.eval_shape(toys.norm().init, toys.key(0)))
    # 2 numbers and 3 classes, 7 hidden units, 4 features.
    self.assertEqual((traffic.up, traffic.down), (size, size + 4 * (6 * 7 + 8 * 4)))

  @parameterized.parameters(
      {'alpha': -1.0}, {'decay': 0.0}, {'decay': 1.1}, {'steps': 0}, {'batch': 0})
  def test_refuses(self, **settings):
    [(name, value)] = settings.items()
    with self.assertRaisesRegex(InputError, f'{name}={value}'):
      make(**settings)


if __name__ == '__main__':
  absltest.main()
