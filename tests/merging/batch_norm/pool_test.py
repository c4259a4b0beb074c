"""Pooled statistics, and variances that stay above zero where models are summed."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax import tree
from hmm_jax.merging.batch_norm.pool import nonnegative_variances, pool


class PoolTest(absltest.TestCase):

  def test_is_the_statistics_of_all_rows_behind_a_shared_linear_layer(self):
    rng = np.random.default_rng(0)
    kernel, sizes = rng.normal(size=(4, 3)), np.array([5, 1, 12])
    rows = [(3 * k + rng.normal(size=(n, 4))) @ kernel for k, n in enumerate(sizes)]
    stacked = {'batch_stats': {'BatchNorm_0': {
        'mean': np.array([x.mean(axis=0) for x in rows], np.float32),
        'var': np.array([x.var(axis=0) for x in rows], np.float32)}}}
    pooled = pool(np.float32(sizes / sizes.sum()), stacked)
    everything = np.concatenate(rows)
    toys.assert_close(pooled, {'batch_stats': {'BatchNorm_0': {
        'mean': everything.mean(axis=0), 'var': everything.var(axis=0)}}}, rtol=1e-4)

  def test_of_one_model_or_of_copies_they_stay(self):
    variables = toys.start(toys.cnn)
    statistics = {'batch_stats': variables['batch_stats']}
    for weights in ([1.0], [0.2, 0.5, 0.3]):
      stacked = tree.repeat(statistics, len(weights))
      toys.assert_close(pool(jnp.array(weights), stacked), statistics)

  def test_a_model_of_weight_0_is_not_there(self):
    far = {'mean': jnp.array([[1.0], [1e6]]), 'var': jnp.array([[2.0], [1e6]])}
    toys.assert_close(pool(jnp.array([1.0, 0.0]), far), {'mean': np.ones(1), 'var': np.full(1, 2.)})

  def test_without_normalization_there_is_nothing(self):
    self.assertEqual(pool(jnp.ones(1), {}), {})


class NonnegativeVariancesTest(absltest.TestCase):

  def test_lifts_variances_to_zero_and_nothing_else(self):
    values = np.array([-2.0, -0.0, 0.5, np.inf], np.float32)
    variables = {
        'params': {'trunk': {'var': values, 'scale': values}, 'head': {'kernel': values}},
        'batch_stats': {'trunk': {'Block_0': {'BatchNorm_1': {'mean': values, 'var': values}}},
                        'var': {'mean': values}}}
    expected = jax.tree.map(np.copy, variables)
    expected['batch_stats']['trunk']['Block_0']['BatchNorm_1']['var'][0] = 0
    toys.assert_close(nonnegative_variances(variables), expected, rtol=0, atol=0)

  def test_of_a_stack_of_networks(self):
    start = toys.start(toys.cnn)
    stacked = tree.stack([tree.scale(-1, start), start])
    lifted = nonnegative_variances(stacked)
    toys.assert_close(tree.take(lifted, 1), start, rtol=0, atol=0)
    negative = tree.take(lifted, 0)
    toys.assert_close(negative['params'], tree.scale(-1, start['params']), rtol=0, atol=0)
    norm = negative['batch_stats']['trunk']['BatchNorm_0']
    self.assertEqual(norm['var'].tolist(), [0] * 4)
    logits, _ = toys.cnn().apply(negative, jnp.ones((2, 4, 4, 1)))
    self.assertTrue(tree.all_finite(logits))

  def test_a_network_without_statistics_stays(self):
    start = tree.scale(-1, toys.start(toys.perceptron))
    toys.assert_close(nonnegative_variances(start), start, rtol=0, atol=0)


if __name__ == '__main__':
  absltest.main()
