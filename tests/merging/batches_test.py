"""Batches of an epoch, padding, and means over batches."""

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax.merging import batches, search
from hmm_jax.types import Examples

EXAMPLES = Examples(jnp.arange(20.0), jnp.arange(20) % 3)


class EpochTest(parameterized.TestCase):

  @parameterized.parameters((65, 64), (65, 13), (65, 65), (7, 3), (1, 64), (5, 1), (20, 6))
  def test_every_example_once(self, count, batch):
    rows = jnp.asarray(3 + 2 * np.arange(count), jnp.int32)
    made = np.asarray(batches.epoch(toys.key(0), rows, batch=batch))
    self.assertEqual(sorted(made[made >= 0].tolist()), rows.tolist())
    sizes = (made >= 0).sum(axis=1)
    self.assertEqual(len(sizes), -(-count // batch))
    self.assertLessEqual(sizes.max() - sizes.min(), 1)
    self.assertTrue((np.diff(made < 0, axis=1) >= 0).all())  # Padding is at the end.

  def test_full_batches_are_those_of_a_stream(self):
    rows = jnp.arange(24)
    np.testing.assert_array_equal(
        batches.epoch(toys.key(0), rows, batch=8),
        search.minibatches(toys.key(0), rows, batch=8, steps=3))


class MeanTest(parameterized.TestCase):

  @parameterized.parameters(
      [[[2, 3, 5], [7, 11, -1]]], [[[2, 3], [5, 7], [11, -1]]], [[[2, 3, 5, 7, 11]]])
  def test_is_over_examples(self, rows):
    measure = lambda batch: batches.masked_mean(batch.x, batch.mask)
    got = batches.mean_over_batches(measure, EXAMPLES, jnp.array(rows))
    np.testing.assert_allclose(got, np.mean([2, 3, 5, 7, 11]), rtol=1e-6)

  def test_of_padding_only_is_nothing(self):
    batch = batches.take(EXAMPLES, jnp.array([-1, -1]))
    self.assertEqual(batches.masked_mean(batch.x, batch.mask), 0)

  def test_rows_of_an_example_weigh_alike(self):
    np.testing.assert_allclose(
        batches.row_weights(jnp.array([True, True, False]), 6)[:, 0], [0.25] * 4 + [0] * 2)


if __name__ == '__main__':
  absltest.main()
