"""Tests of what a client minimizes."""

from functools import cache

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from reference import softmax_regression, toys

from hmm_jax import tree
from hmm_jax.client import losses
from hmm_jax.types import Batch

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 2, 1, 1, 0, 2], np.int32)
MASK = np.array([True, True, False, True, False, True])
PLAIN = losses.supervised(toys.linear())


@cache
def slope(loss):
  return toys.jit(jax.value_and_grad(loss, has_aux=True))


def grad(loss, params, *, batch=None, start=None, extra=()):
  """Returns (loss, its report, its gradient)."""
  batch = batch or Batch(X, Y, MASK)
  (value, (_, report)), gradient = slope(loss)(params, {}, batch, start, extra, None)
  return value, report, gradient


@cache
def model(seed):
  return jax.tree.map(np.asarray, toys.jit(toys.linear().init)(toys.key(seed)))


class LossesTest(absltest.TestCase):

  def test_masked_mean(self):
    values = jnp.array([1.0, np.nan, 4.0])
    self.assertEqual(losses.masked_mean(values, jnp.array([True, False, True])), 2.5)
    self.assertEqual(losses.masked_mean(values, jnp.zeros(3, bool)), 0)

  def test_cross_entropy_by_hand(self):
    variables = model(0)
    value, report, gradient = grad(PLAIN, variables['params'])
    params = toys.twin(variables)
    toys.assert_close(value, softmax_regression.losses(params, X[MASK], Y[MASK]).mean())
    toys.assert_close(report, value)
    toys.assert_close(gradient['head'], softmax_regression.gradient(params, X[MASK], Y[MASK]))

  def test_smoothed_labels_by_hand(self):
    smoothing = 0.6
    variables = model(0)
    value, report, gradient = grad(
        losses.supervised(toys.linear(), smoothing=smoothing), variables['params'])
    params, x, y = toys.twin(variables), X[MASK].astype(np.float64), Y[MASK]
    target = (1 - smoothing) * np.eye(3)[y] + smoothing / 3
    chance = softmax_regression.probabilities(params, x)
    toys.assert_close(value, -(target * np.log(chance)).sum(axis=1).mean())
    toys.assert_close(report, softmax_regression.losses(params, x, y).mean())
    toys.assert_close(gradient['head'], {
        'kernel': x.T @ (chance - target) / len(y), 'bias': (chance - target).mean(axis=0)})

  def test_a_fully_masked_batch_has_no_loss_and_no_gradient(self):
    value, report, gradient = grad(
        PLAIN, model(0)['params'], batch=Batch(X, Y, np.zeros(6, bool)))
    self.assertEqual((value, report), (0, 0))
    toys.assert_close(gradient, jax.tree.map(np.zeros_like, gradient), atol=0)

  def test_cross_entropy_updates_the_statistics(self):
    variables = toys.start(toys.norm)
    statistics = {'batch_stats': variables['batch_stats']}
    _, (updated, _) = toys.jit(losses.supervised(toys.norm()))(
        variables['params'], statistics, Batch(X, Y, MASK), None, (), None)
    self.assertEqual(updated.keys(), variables.keys())
    moved = updated['batch_stats']['trunk']['BatchNorm_0']['mean']
    toys.assert_close(moved, 0.1 * X[MASK].mean(axis=0))

  def test_proximal_pulls_towards_the_start(self):
    params, start = model(0), model(1)
    value, report, gradient = grad(
        losses.proximal(PLAIN, 0.3), params['params'], start=start)
    plain_value, plain_report, plain_gradient = grad(PLAIN, params['params'])
    drift = {name: toys.twin(params)[name] - toys.twin(start)[name] for name in ('kernel', 'bias')}
    squared = sum((d**2).sum() for d in drift.values())
    toys.assert_close(value, plain_value + 0.15 * squared)
    toys.assert_close(report, plain_report)
    for name in drift:
      toys.assert_close(gradient['head'][name], plain_gradient['head'][name] + 0.3 * drift[name])

  def test_proximal_pulls_towards_an_anchor(self):
    params, start, other = (model(seed) for seed in range(3))
    elsewhere = losses.proximal(PLAIN, 0.3, anchor=lambda start, extra: extra['params'])
    got = grad(elsewhere, params['params'], start=start, extra=other)
    wanted = grad(losses.proximal(PLAIN, 0.3), params['params'], start=other)
    toys.assert_close(got, wanted)

  def test_corrected_adds_the_correction_to_the_gradient(self):
    params = model(0)['params']
    _, plain_report, plain_gradient = grad(PLAIN, params)
    _, report, gradient = grad(losses.corrected(PLAIN), params, extra=model(1)['params'])
    toys.assert_close(gradient, tree.add(plain_gradient, model(1)['params']))
    toys.assert_close(report, plain_report)

  def test_wrappers_nest(self):
    both = losses.corrected(losses.proximal(PLAIN, 2.0))
    params, start, extra = (model(seed)['params'] for seed in range(3))
    _, _, plain = grad(PLAIN, params)
    _, report, gradient = grad(both, params, start={'params': start}, extra=extra)
    pull = tree.scale(2.0, tree.sub(params, start))
    toys.assert_close(gradient, tree.add(plain, tree.add(pull, extra)))
    twin = toys.twin({'params': params})
    toys.assert_close(report, softmax_regression.losses(twin, X[MASK], Y[MASK]).mean())


if __name__ == '__main__':
  absltest.main()
