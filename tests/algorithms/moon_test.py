"""Tests of MOON against its pseudo-code."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import moon as reference
from reference import rounds, toys, two_layer

from hmm_jax import tree
from hmm_jax.algorithms import moon
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.types import Batch, InputError

LR = rounds.LR
STEPS = 3
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 2, 1, 1, 0, 2], np.int32)
MASK = np.array([True, True, False, True, False, True])


@cache
def contrastive(network=toys.perceptron, **settings):
  return moon.contrastive(losses.supervised(network()), network(), **settings)


def make(loss, network=toys.perceptron, optimizer=None, *, batch=99, epochs=STEPS, **settings):
  train = local_training(loss, optimizer or optax.sgd(LR), batch=batch, epochs=epochs)
  return moon.moon(network(), train, mapper=mappers.one_by_one(), **settings)


def perceptron(seed):
  return jax.tree.map(np.asarray, toys.jit(toys.perceptron().init)(toys.key(seed)))


@cache
def slope(loss):
  return toys.jit(jax.value_and_grad(loss, has_aux=True))


def grad(loss, variables, *, start, extra, x=X, mask=MASK):
  """Returns (loss, its report, its gradient)."""
  function = slope(loss)
  (value, (_, report)), gradient = function(
      variables['params'], {}, Batch(x, Y, mask), start, extra, None)
  return value, report, toys.twin({'params': gradient})


class MoonTest(parameterized.TestCase):

  def test_equals_the_pseudo_code(self):
    settings = {'mu': 3.0, 'tau': 0.2}
    states, metrics = rounds.play(make(contrastive(**settings), participation=2), 4)
    cohorts = rounds.positions(metrics)
    self.assertLen(set().union(*cohorts), 5)
    received, previous = reference.moon(
        toys.twin(toys.start(toys.perceptron)), toys.tables(rounds.FEDERATION), cohorts=cohorts,
        epochs=STEPS, lr=LR, **settings)
    toys.assert_close(toys.twin(states[-1].variables), received, rtol=1e-4, atol=1e-5)
    for k, wanted in enumerate(previous):
      got = toys.twin(tree.take(states[-1].previous, k))
      toys.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
      if k not in cohorts[0]:  # Who never took part has the initial model.
        toys.assert_close(tree.take(states[1].previous, k), states[0].variables)

  def test_contrast_by_hand(self):
    models = [perceptron(seed) for seed in range(3)]
    value, report, gradient = grad(contrastive(), models[0], start=models[1], extra=models[2])
    twins, x = [toys.twin(model) for model in models], X[MASK].astype(np.float64)
    plain = two_layer.losses(twins[0], x, Y[MASK]).mean()
    # The published mu = 1 and tau = 0.5 are the defaults.
    toys.assert_close(value, plain + reference.contrasts(*twins, x, tau=0.5).mean())
    toys.assert_close(report, plain)
    toys.assert_close(gradient, reference.gradient(*twins, x, Y[MASK], mu=1, tau=0.5), rtol=1e-4)

  def test_gradient_of_the_twin_is_that_of_its_loss(self):
    params, received, previous = (toys.twin(perceptron(seed)) for seed in range(3))
    x, step = X.astype(np.float64), 1e-6
    slope = reference.gradient(params, received, previous, x, Y, mu=1, tau=0.5)
    plain = reference.gradient(params, received, previous, x, Y, mu=0, tau=0.5)
    for name, index in (('hidden_kernel', (1, 2)), ('hidden_bias', (3,))):
      ends = []
      for sign in (-1, 1):
        moved = {n: v.copy() for n, v in params.items()}
        moved[name][index] += sign * step
        ends.append(reference.contrasts(moved, received, previous, x, tau=0.5).mean())
      np.testing.assert_allclose(
          (slope[name] - plain[name])[index], (ends[1] - ends[0]) / (2 * step), rtol=1e-5)

  def test_is_safe_at_zero_features_and_small_temperatures(self):
    models = [perceptron(seed) for seed in range(3)]
    x = np.zeros_like(X)
    dead = jax.tree.map(np.zeros_like, models[0])
    for variables, start, extra in ((dead, *models[1:]), (models[0], dead, models[1])):
      value, _, gradient = grad(
          contrastive(tau=1e-4), variables, start=start, extra=extra, x=x)
      self.assertTrue(tree.all_finite((value, gradient)))
    toys.assert_close(moon.unit(np.float32([[3, 4], [0, 0]])), np.float32([[0.6, 0.8], [0, 0]]))
    slope = jax.grad(lambda z: moon.unit(z).sum())(jnp.zeros((1, 2)))
    self.assertTrue(tree.all_finite(slope))

  def test_a_fully_masked_batch_has_no_contrast(self):
    models = [perceptron(seed) for seed in range(3)]
    value, _, gradient = grad(contrastive(), models[0], start=models[1], extra=models[2],
                              mask=np.zeros(6, bool))
    self.assertEqual(value, 0)
    toys.assert_close(gradient, jax.tree.map(np.zeros_like, gradient), atol=0)

  def test_other_models_are_in_evaluation_mode(self):
    # Under BatchNorm the current model sees the batch's statistics, the others their own.
    variables = toys.start(toys.norm)
    loss = contrastive(toys.norm)
    statistics = {'batch_stats': variables['batch_stats']}
    away = {**variables, 'batch_stats': jax.tree.map(lambda v: v + 2, variables['batch_stats'])}
    value, (updated, plain) = toys.jit(loss)(
        variables['params'], statistics, Batch(X, Y, MASK), variables, away, None)
    x = X[MASK].astype(np.float64)
    z = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    rows = []
    for row, own, moved in zip(z, x / np.sqrt(1 + 1e-5), (x - 2) / np.sqrt(3 + 1e-5), strict=True):
      near, far = reference.cosine(row, own) / 0.5, reference.cosine(row, moved) / 0.5
      rows.append(np.log1p(np.exp(far - near)))
    toys.assert_close(value - plain, np.mean(rows), rtol=1e-4)
    # And the contrast leaves the statistics to the loss.
    once = toys.jit(losses.supervised(toys.norm()))(
        variables['params'], statistics, Batch(X, Y, MASK), None, (), None)[1][0]
    toys.assert_close(updated, once)

  def test_wraps_any_loss(self):
    models = [perceptron(seed) for seed in range(3)]
    pulled = losses.proximal(losses.supervised(toys.perceptron()), 0.3)
    value, *_ = grad(moon.contrastive(pulled, toys.perceptron()), models[0],
                     start=models[1], extra=models[2])
    alone, *_ = grad(contrastive(), models[0], start=models[1], extra=models[2])
    drift = tree.sub(models[0]['params'], models[1]['params'])
    toys.assert_close(value, alone + 0.15 * tree.dot(drift, drift), rtol=1e-4)

  def test_without_the_contrast_it_is_fedavg(self):
    states, metrics = rounds.play(make(
        contrastive(toys.norm, mu=0.0), toys.norm, rounds.OPTIMIZER, batch=2, epochs=2,
        participation=3), 2)
    expected, reports = rounds.averaged()
    toys.assert_close(states[-1].variables, expected[-1].variables)
    toys.assert_close(metrics, reports)

  def test_random_layers_draw_as_in_the_loss(self):
    # In training x is multiplied by noise; in evaluation by a number, instead of variables.
    def features(sign, x, *, train=False, mask=None, key=None):
      return x * jax.random.normal(key, x.shape) if train else x * sign

    plain, key = losses.supervised(toys.linear()), toys.key(5)
    loss = moon.contrastive(plain, toys.linear()._replace(features=features))
    value, (_, without) = loss(
        toys.start(toys.linear)['params'], {}, Batch(X, Y, MASK), 1.0, -1.0, key)
    drawn = np.asarray(X * jax.random.normal(key, X.shape))
    cosines = np.array([reference.cosine(a, b) for a, b in zip(drawn[MASK], X[MASK], strict=True)])
    toys.assert_close(value - without, np.log1p(np.exp(-4 * cosines)).mean(), rtol=1e-4)

  def test_traffic_is_a_model(self):
    size = tree.nbytes(jax.eval_shape(toys.norm().init, toys.key(0)))
    self.assertEqual(make(contrastive(toys.norm), toys.norm).traffic, (size, size))

  @parameterized.parameters({'mu': -1.0}, {'tau': 0.0})
  def test_refuses(self, **settings):
    [(name, value)] = settings.items()
    with self.assertRaisesRegex(InputError, f'{name}={value}'):
      contrastive(**settings)


if __name__ == '__main__':
  absltest.main()
