"""Fisher information against squared gradients row by row, and merges by it."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import fisher as reference
from reference import softmax_regression, toys

from hmm_jax import tree
from hmm_jax.merging import fisher
from hmm_jax.types import InputError

FEDERATION = toys.federation()
ROWS = jnp.array([[0, 4, 9, 11], [3, 20, 30, 5], [7, 8, 1, 17]])  # of two models or of each


@cache
def stacked():
  """Returns three different networks with 5 hidden units."""
  models = toys.jit(jax.vmap(toys.perceptron().init))(jax.random.split(toys.key(1), 3))
  return tree.scale(2.0, models)


def twins():
  return [toys.twin(model) for model in tree.unstack(stacked())]


def inputs(rows):
  x, y = FEDERATION.examples
  return np.asarray(x, np.float64)[np.ravel(rows)], np.asarray(y)[np.ravel(rows)]


def estimate(labels, rows):
  """Returns the diagonal of the first model, rows not a multiple of what is held at a time."""
  return named(toys.jit(lambda variables, key: fisher.diagonal(
      toys.perceptron(), variables, FEDERATION.examples, rows, key, labels=labels, chunk=7))(
          tree.take(stacked(), 0), toys.key(0)))


def named(params):
  return toys.twin({'params': params})


class DiagonalTest(parameterized.TestCase):

  def test_is_the_mean_of_each_rows_squared_gradient(self):
    got = estimate(fisher.given, ROWS.ravel())
    wanted = reference.diagonal(twins()[0], *inputs(ROWS))
    toys.assert_close(got, wanted, rtol=1e-4, atol=1e-7)
    self.assertGreater(max(x.max() for x in wanted.values()), 0.01)

  def test_of_labels_drawn_is_the_mean_over_what_the_model_predicts(self):
    rows = jnp.tile(jnp.array([2, 13]), 3000)
    got = estimate(fisher.drawn, rows)
    params, (x, _) = twins()[0], inputs(rows[:2])
    hidden = np.maximum(x @ params['hidden_kernel'] + params['hidden_bias'], 0)
    probabilities = softmax_regression.probabilities(params, hidden)
    wanted = reference.expected(params, x, probabilities)
    for name in wanted:
      # Four standard deviations would be 5 %: no label has a chance below 0.2.
      np.testing.assert_allclose(got[name], wanted[name], rtol=0.1, atol=1e-3, err_msg=name)
    empirical = reference.diagonal(params, *inputs(rows[:2]))
    self.assertGreater(np.abs(empirical['bias'] - wanted['bias']).max(), 0.05)


class MergeTest(parameterized.TestCase):

  def test_weighs_by_fisher(self):
    got = merged(labels='given')(ROWS[:2])
    diagonals = [reference.diagonal(params, *inputs(ROWS[:2])) for params in twins()]
    toys.assert_close(named(got), reference.merge(twins(), diagonals, 1e-6), rtol=1e-3, atol=1e-5)

  def test_each_model_may_have_rows_of_its_own(self):
    own = ROWS[:, None]
    got = merged(labels='given')(own)
    diagonals = [reference.diagonal(params, *inputs(rows)) for params, rows in zip(twins(), own)]
    toys.assert_close(named(got), reference.merge(twins(), diagonals, 1e-6), rtol=1e-3, atol=1e-5)

  def test_with_equal_fisher_or_none_is_the_mean(self):
    models = stacked()['params']
    merge = toys.jit(lambda value: fisher.merge(
        models, jax.tree.map(lambda x: jnp.full(x.shape, value), models), floor=1e-6))
    for value in (0.0, 3.0, 1e-9):
      toys.assert_close(merge(value), tree.mix(np.full(3, 1 / 3, np.float32), models))

  def test_what_is_below_the_floor_is_lifted_to_it(self):
    got = fisher.merge({'x': jnp.array([1.0, 4.0])}, {'x': jnp.array([2e-6, 1e-12])}, floor=1e-6)
    self.assertAlmostEqual(float(got['x']), 2, places=5)

  def test_labels_that_are_drawn_hang_on_the_key_and_given_ones_do_not(self):
    for labels, differ in (('given', False), ('drawn', True)):
      a, b = (merged(labels=labels)(ROWS[:2], key=k) for k in (0, 1))
      gap = jnp.abs(a['head']['kernel'] - b['head']['kernel']).max()
      self.assertEqual(bool(gap > 1e-4), differ)

  @parameterized.parameters(
      (dict(floor=0.0), 'got floor=0.0; expected a number above 0'), (dict(floor=-1), 'floor=-1'),
      (dict(labels='mine'), 'got labels=mine; expected one of given, drawn'),
      (dict(chunk=0), 'got chunk=0; expected at least 1'))
  def test_settings_that_cannot_be(self, settings, message):
    with self.assertRaisesRegex(InputError, message):
      fisher.fisher(**settings)


@cache
def merged(labels):
  merge = toys.jit(fisher.fisher(labels=labels, chunk=3), static_argnums=0)
  return lambda rows, key=0: merge(
      toys.perceptron(), stacked(), None, FEDERATION.examples, rows, toys.key(key))


if __name__ == '__main__':
  absltest.main()
