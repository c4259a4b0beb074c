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

FEDERATION = toys.federation()
ROWS = jnp.array([[0, 4, 9, 11], [3, 20, 30, 5], [7, 8, 1, 17]])  # of each model


@cache
def stacked():
  """Returns three different networks with 5 hidden units."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.float32(x[None] + rng.normal(size=(3, *x.shape))),
                      toys.start(toys.perceptron))


def twins():
  return [toys.twin(model) for model in tree.unstack(stacked())]


def inputs(rows):
  x, y = FEDERATION.examples
  return np.asarray(x, np.float64)[np.ravel(rows)], np.asarray(y)[np.ravel(rows)]


def estimate(labels, rows, chunk):
  """Returns the diagonal of the first model."""
  return named(toys.jit(lambda variables, key: fisher.diagonal(
      toys.perceptron(), variables, FEDERATION.examples, rows, key, labels=labels, chunk=chunk))(
          tree.take(stacked(), 0), toys.key(0)))


def named(params):
  return toys.twin({'params': params})


class DiagonalTest(parameterized.TestCase):

  def test_is_the_mean_of_each_rows_squared_gradient(self):
    got = estimate(fisher.given, ROWS.ravel(), chunk=7)  # Which 12 is no multiple of.
    wanted = reference.diagonal(twins()[0], *inputs(ROWS))
    toys.assert_close(got, wanted, rtol=1e-4, atol=1e-7)
    self.assertGreater(max(x.max() for x in wanted.values()), 0.01)

  def test_of_labels_drawn_is_the_mean_over_what_the_model_predicts(self):
    rows = jnp.tile(jnp.array([2, 13]), 3000)
    got = estimate(fisher.drawn, rows, chunk=600)
    params, (x, _) = twins()[0], inputs(rows[:2])
    hidden = np.maximum(x @ params['hidden_kernel'] + params['hidden_bias'], 0)
    probabilities = softmax_regression.probabilities(params, hidden)
    wanted = reference.expected(params, x, probabilities)
    for name in wanted:
      # Four standard deviations would be 5 %: no label has a chance below 0.2.
      np.testing.assert_allclose(got[name], wanted[name], rtol=0.1, atol=1e-3, err_msg=name)
    empirical = reference.diagonal(params, *inputs(rows[:2]))
    self.assertGreater(np.abs(empirical['bias'] - wanted['bias']).max(), 0.05)

  def test_running_statistics_normalize(self):
    network, (x, y) = toys.norm(), inputs(ROWS)
    noise = lambda x: np.random.default_rng(x.size).uniform(0.5, 1.5, x.shape).astype(np.float32)
    variables = jax.tree.map(lambda x: x + noise(x), toys.start(toys.norm))
    got = toys.jit(lambda variables: fisher.diagonal(
        network, variables, FEDERATION.examples, ROWS.ravel(), toys.key(0), labels=fisher.given,
        chunk=4))(variables)
    own, running = (jax.tree.map(np.asarray, variables[name]['trunk']['BatchNorm_0'])
                    for name in ('params', 'batch_stats'))
    features = (x - running['mean']) / np.sqrt(running['var'] + 1e-5) * own['scale'] + own['bias']
    head = toys.twin(variables)
    errors = np.eye(3)[y] - softmax_regression.probabilities(head, features)
    np.testing.assert_allclose(got['head']['kernel'], (features**2).T @ errors**2 / len(x),
                               rtol=1e-4)


class MergeTest(parameterized.TestCase):

  def test_weighs_by_each_models_fisher_on_its_own_rows(self):
    got = merged('given')(ROWS[:, None], stacked())
    diagonals = [reference.diagonal(params, *inputs(rows)) for params, rows in zip(twins(), ROWS)]
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

  def test_labels_are_drawn_for_each_model_by_itself(self):
    # These predict alike: a softmax does not see what is added to all logits.
    one = tree.take(stacked(), 0)
    alike = tree.repeat(one, 3)
    alike['params']['head']['bias'] += jnp.arange(3.0)[:, None]
    rows = jnp.tile(ROWS[:1, None], (3, 1, 1))
    moved = {labels: merged(labels)(rows, alike)['head']['bias'] - one['params']['head']['bias']
             for labels in fisher.LABELS}
    np.testing.assert_allclose(moved['given'], 1, rtol=1e-4)
    self.assertGreater(np.abs(moved['drawn'] - 1).max(), 0.01)


@cache
def merged(labels):
  """Returns merges: that of labels which are drawn uncompiled."""
  merge = fisher.fisher(labels=labels, chunk=3)
  if labels == 'given':
    merge = toys.jit(merge, static_argnums=0)
  return lambda rows, models: merge(
      toys.perceptron(), models, None, FEDERATION.examples, rows, toys.key(0))


if __name__ == '__main__':
  absltest.main()
