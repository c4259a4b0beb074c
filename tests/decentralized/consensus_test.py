"""Tests of what is measured of stacked models and of mixing matrices."""

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax.decentralized import consensus


class ConsensusTest(parameterized.TestCase):

  def test_is_the_mean_squared_distance_to_the_mean(self):
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, (6, 2, 3)), rng.normal(size=(6, 4))
    stacked = {'a': np.float32(a), 'b': {'c': np.float32(b)}}
    flat = np.concatenate([a.reshape(6, -1), b], axis=1)
    expected = sum(((model - flat.mean(axis=0)) ** 2).sum() for model in flat) / 6
    got = toys.jit(consensus.consensus)(stacked)
    self.assertEqual((got.shape, got.dtype), ((), np.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5)

  def test_of_models_that_nearly_agree(self):
    rng = np.random.default_rng(0)
    stacked = np.float32(rng.normal(30, 1, (1, 500)) + rng.normal(0, 1e-3, (4, 500)))
    wide = stacked.astype(np.float64)
    expected = ((wide - wide.mean(axis=0)) ** 2).sum() / 4
    got = consensus.consensus({'a': jnp.asarray(stacked)})
    np.testing.assert_allclose(got, expected, rtol=1e-4)

  def test_equal_models_agree(self):
    self.assertEqual(consensus.consensus({'a': jnp.full((4, 3), 0.5)}), 0)


class ContractionTest(absltest.TestCase):

  def test_is_the_share_of_the_consensus_taken_away(self):
    rng = np.random.default_rng(0)
    before = {'a': np.float32(rng.normal(5, 1, (6, 3)))}
    after = {'a': before['a'].mean(0, keepdims=True) + 0.5 * (before['a'] - before['a'].mean(0))}
    np.testing.assert_allclose(toys.jit(consensus.contraction)(before, after), 0.75, rtol=1e-4)

  def test_models_that_agree_have_nothing_to_lose(self):
    for agents in (3, 5, 7):
      same = {'a': np.tile(np.float32(np.random.default_rng(1).normal(size=(1, 50))), (agents, 1))}
      self.assertEqual(toys.jit(consensus.contraction)(same, same), 0)


class MessagesTest(parameterized.TestCase):

  def count(self, matrix):
    """Returns what each agent sends and receives, as lists."""
    sent, received = toys.jit(consensus.messages)(np.float32(matrix))
    self.assertEqual({sent.dtype, received.dtype}, {np.dtype(np.float32)})
    return sent.tolist(), received.tolist()

  def test_entries_off_the_diagonal_are_models(self):
    # Row i is what agent i makes of the models: 0 hears of 1 and 2, 2 of 1, the others of none.
    matrix = [[0.2, 0.3, 0.5, 0], [0, 1, 0, 0], [0, 0.9, 0.1, 0], [0, 0, 0, 1]]
    self.assertEqual(self.count(matrix), ([0, 2, 1, 0], [2, 0, 1, 0]))

  def test_negative_weights_and_empty_diagonals_count(self):
    self.assertEqual(self.count([[0, 1, 0], [-0.5, 1.5, 0], [0, 0, 1]]), ([1, 1, 0], [1, 1, 0]))

  def test_silence_is_free(self):
    self.assertEqual(self.count(np.eye(3)), ([0, 0, 0], [0, 0, 0]))

  @parameterized.parameters(2, 3, 7, 32)
  def test_the_average_is_an_allreduce(self, agents):
    expected = 2 * (agents - 1) / agents
    self.assertAlmostEqual(consensus.allreduce(agents), expected)
    for counts in self.count(np.full((agents, agents), 1 / agents)):
      np.testing.assert_allclose(counts, expected, rtol=1e-6)

  def test_another_dense_matrix_is_not(self):
    matrix = np.full((4, 4), 0.2) + 0.2 * np.eye(4)
    self.assertEqual(self.count(matrix), ([3] * 4, [3] * 4))
    self.assertEqual(self.count(np.full((4, 4), 0.5)), ([3] * 4, [3] * 4))
    almost = np.full((4, 4), 0.25)
    almost[0, :2] += 0.01, -0.01
    self.assertEqual(self.count(almost), ([3] * 4, [3] * 4))


if __name__ == '__main__':
  absltest.main()
