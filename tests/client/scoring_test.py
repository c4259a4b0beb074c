"""Tests of how well models fit a client's rows."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import softmax_regression, toys

from hmm_jax import tree
from hmm_jax.client import scoring
from hmm_jax.types import Batch

FEDERATION = toys.federation((6, 3, 0, 8, 1))
X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
Y = np.array([0, 2, 1, 1, 0], np.int32)


def models(network, count=3):
  return jax.vmap(network().init)(jax.random.split(toys.key(0), count))


class CrossEntropiesTest(absltest.TestCase):

  def test_every_model_on_every_row(self):
    stacked = models(toys.linear)
    got = toys.jit(scoring.losses_of_models(toys.linear()))(stacked, Batch(X, Y, np.ones(5, bool)))
    toys.assert_close(got, np.stack([
        softmax_regression.losses(toys.twin(model), X.astype(np.float64), Y)
        for model in tree.unstack(stacked)]))

  def test_uses_the_running_statistics(self):
    stacked = models(toys.norm)
    shifted = {**stacked, 'batch_stats': jax.tree.map(lambda x: x + 2, stacked['batch_stats'])}
    got = toys.jit(scoring.losses_of_models(toys.norm()))(shifted, Batch(X, Y, np.ones(5, bool)))
    by_hand = (X.astype(np.float64) - 2) / np.sqrt(3 + 1e-5)
    toys.assert_close(got, np.stack([
        softmax_regression.losses(toys.twin(model), by_hand, Y)
        for model in tree.unstack(shifted)]))


class MeanOverRowsTest(parameterized.TestCase):

  @parameterized.parameters(3, 99)
  def test_visits_each_row_once(self, batch):
    values = lambda factor, minibatch: factor * jnp.stack(
        [minibatch.x[:, 0], minibatch.y.astype(jnp.float32)])
    mean = toys.jit(scoring.mean_over_rows(values, batch=batch))
    for k, (x, y) in enumerate(toys.tables(FEDERATION)):
      got = mean(2.0, FEDERATION.examples, toys.one(FEDERATION, k))
      wanted = [2 * x[:, 0].mean(), 2 * y.mean()] if len(y) else [0, 0]
      toys.assert_close(got, np.array(wanted))

  def test_never_reads_padding(self):
    values = lambda given, minibatch: jnp.where(minibatch.mask, 1, jnp.nan)[None]
    mean = toys.jit(scoring.mean_over_rows(values, batch=4))
    got = [mean((), FEDERATION.examples, toys.one(FEDERATION, k)).item() for k in range(5)]
    self.assertEqual(got, [1, 1, 0, 1, 1])


if __name__ == '__main__':
  absltest.main()
