"""Tests that the Base-(k+1) graphs average exactly."""

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.decentralized.base_graphs import base_graphs


class BaseGraphsTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 3, 4)
  def test_averages_any_number_exactly(self, degree):
    for size in range(2, 26):
      self.assert_averages(size, degree)

  def assert_averages(self, size, degree):
    sequence = base_graphs(size, degree)
    product = np.eye(size)
    for w in sequence:
      self.assertGreaterEqual(w.min(), 0)
      np.testing.assert_array_equal(w, w.T)
      np.testing.assert_allclose(w.sum(axis=1), 1, atol=1e-12)
      self.assertLessEqual((np.count_nonzero(w - np.diag(np.diag(w)), axis=1)).max(), degree)
      product = w @ product
    np.testing.assert_allclose(product, 1 / size, atol=1e-12)
    # The paper's bound on the number of rounds.
    self.assertLessEqual(len(sequence), 2 * np.log(size) / np.log(degree + 1) + 2 + 1e-9)

  def test_a_huge_degree_is_that_of_all(self):
    for matrices in (base_graphs(7, 6), base_graphs(7, 10**12)):
      np.testing.assert_array_equal(matrices, np.full((1, 7, 7), 1 / 7))


if __name__ == '__main__':
  absltest.main()
