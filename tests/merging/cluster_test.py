"""Clusters against SciPy's complete linkage, and where there is little to cluster."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
from reference import clusters, toys

from hmm_jax import tree
from hmm_jax.merging import cluster

largest = toys.jit(cluster.largest_cluster)
linkage = toys.jit(cluster.complete_linkage)
similarities = toys.jit(cluster.similarities)


def vectors(count, seed, *, directions=3, size=6):
  """Returns vectors around some directions, all of different lengths."""
  rng = np.random.default_rng(seed)
  around = rng.normal(size=(directions, size))[rng.integers(0, directions, count)]
  return rng.uniform(0.1, 9, (count, 1)) * (around + 0.5 * rng.normal(size=around.shape))


def trees(x):
  return {'b': jnp.float32(x[:, 0]), 'w': jnp.float32(x[:, 1:]).reshape(len(x), -1, 1)}


def members(mask):
  return np.flatnonzero(mask).tolist()


class SimilaritiesTest(absltest.TestCase):

  def test_are_cosines(self):
    x = vectors(7, 0)
    x[2] = 0
    got = similarities(trees(x))
    np.testing.assert_allclose(got, clusters.similarities(x), atol=1e-6)
    np.testing.assert_array_equal(got, got.T)

  def test_the_mean_is_over_pairs(self):
    similarity = np.float32([[1, .2, .4], [.2, 1, .9], [.4, .9, 1]])
    self.assertAlmostEqual(float(cluster.mean_similarity(similarity)), 0.5, places=6)
    self.assertEqual(float(cluster.mean_similarity(np.ones((1, 1), np.float32))), 0)

  def test_are_symmetric_whatever_the_products_are_rounded_to(self):
    lopsided = lambda deltas: jnp.float32([[1, 0.5], [0.5 + 1e-6, 1]])
    with mock.patch.object(tree, 'gram', lopsided):
      got = cluster.similarities(None)
    np.testing.assert_array_equal(got, got.T)


class ClusterTest(parameterized.TestCase):

  @parameterized.parameters(None, 0.2, 0.5, 0.9)
  def test_is_that_of_scipy(self, threshold):
    sizes = set()
    for seed in range(20):
      similarity = clusters.similarities(vectors(7, seed))
      wanted = clusters.largest(similarity, threshold)
      sizes.add(len(wanted))
      self.assertEqual(members(largest(similarity, threshold)), wanted)
      if threshold is not None:
        self.assertEqual(linkage(similarity, threshold).tolist(),
                         clusters.labels(similarity, threshold))
    self.assertGreater(len(sizes), 1)

  def test_of_equally_large_ones_it_is_the_more_alike(self):
    similarity = np.eye(5) + np.zeros((5, 5))
    for (i, j), value in {(0, 3): 0.8, (1, 4): 0.9}.items():
      similarity[i, j] = similarity[j, i] = value
    self.assertEqual(members(largest(similarity, 0.5)), [1, 4])
    similarity[0, 3] = similarity[3, 0] = 0.9
    self.assertEqual(members(largest(similarity, 0.5)), [0, 3])
    self.assertEqual(linkage(similarity, 0.5).tolist(), [0, 1, 2, 0, 1])
    # Rounding decides nothing.
    similarity[1, 4] = similarity[4, 1] = 0.9 + 1e-6
    self.assertEqual(members(largest(similarity, 0.5)), [0, 3])

  def test_all_pairs_of_a_cluster_reach_the_threshold(self):
    # A chain: neighbors are alike, the ends are not.
    similarity = np.array([[1, .9, .1], [.9, 1, .8], [.1, .8, 1]])
    self.assertEqual(members(largest(similarity, 0.5)), [0, 1])
    self.assertEqual(members(largest(similarity, 0.1)), [0, 1, 2])

  def test_where_no_pair_reaches_the_threshold_it_is_everybody(self):
    similarity = clusters.similarities(vectors(4, 0))
    self.assertEqual(members(largest(similarity, 1.01)), [0, 1, 2, 3])

  @parameterized.parameters(1, 3, 7)
  def test_models_of_one_direction_are_one_cluster(self, count):
    rng = np.random.default_rng(count)
    x = np.repeat(rng.normal(size=(1, 6)), count, axis=0)
    for size in (1, 0, *rng.uniform(0.1, 9, (4, count, 1))):  # Cosines are rounded.
      self.assertEqual(members(largest(similarities(trees(size * x)))), [*range(count)])

  def test_two_models_are_one_cluster_unless_a_threshold_says_otherwise(self):
    for x in ([[1., 0], [-1, 0]], [[1., 0], [1, 1]], [[0., 0], [1, 1]]):
      similarity = similarities({'w': np.float32(x)})
      self.assertEqual(members(largest(similarity)), [0, 1])

  def test_a_model_that_learned_nothing_is_like_nobody(self):
    x = np.float32([[1, 0], [0, 0], [1, .1], [0, 0]])
    self.assertEqual(members(largest(similarities({'w': x}))), [0, 2])


if __name__ == '__main__':
  absltest.main()
