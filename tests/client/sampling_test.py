"""Tests of who takes part in a round, and with what weight."""

from collections import Counter
from functools import cache
from itertools import combinations

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax import tree
from hmm_jax.client import sampling
from hmm_jax.types import Cohort, InputError

CLIENTS = toys.federation().clients
TOTAL = len(toys.SIZES)


@cache
def program(how):
  return toys.jit(jax.vmap(how, (None, None, 0)), static_argnums=1)


def draw(clients, count, how=sampling.sample):
  """Samples 3000 times: positions [T, m] and Clients with a leading axis T."""
  keys = jax.random.split(toys.key(0), 3000)
  return jax.tree.map(np.asarray, program(how)(clients, count, keys))


class SampleTest(parameterized.TestCase):

  @parameterized.parameters(0, TOTAL)
  def test_all_clients_in_their_order(self, count):
    positions, drawn = sampling.sample(CLIENTS, count, toys.key(0))
    np.testing.assert_array_equal(positions, np.arange(TOTAL))
    jax.tree.map(np.testing.assert_array_equal, drawn, CLIENTS)

  @parameterized.parameters(2, 4)
  def test_without_replacement(self, count):
    positions, drawn = draw(CLIENTS, count)
    self.assertEqual(positions.shape, (3000, count))
    self.assertTrue(all(len(set(row)) == count for row in positions.tolist()))
    jax.tree.map(np.testing.assert_array_equal, drawn, tree.take(CLIENTS, positions))

  def test_follows_the_ids(self):
    order = np.array([3, 0, 4, 1, 2])
    _, drawn = draw(CLIENTS, 2)
    _, other = draw(tree.take(CLIENTS, order), 2)
    jax.tree.map(np.testing.assert_array_equal, drawn, other)

  def test_every_pair_is_equally_likely(self):
    positions, _ = draw(CLIENTS, 2)
    counts = Counter(tuple(sorted(row)) for row in positions.tolist())
    pairs = list(combinations(range(TOTAL), 2))
    expected = 3000 / len(pairs)
    chi_square = sum((counts[pair] - expected) ** 2 / expected for pair in pairs)
    self.assertLess(chi_square, 27.9)  # 9 degrees of freedom: 0.1 % lie above.

  @parameterized.parameters(-1, TOTAL + 1)
  def test_refuses_a_count_out_of_range(self, count):
    with self.assertRaisesRegex(InputError, f'participation={count}'):
      sampling.sample(CLIENTS, count, toys.key(0))


class ShuffledTest(parameterized.TestCase):

  def shuffle(self, clients, count):
    """Shuffles 3000 times: positions [T, m] and Clients with a leading axis T."""
    return draw(clients, count, how=sampling.shuffled)

  @parameterized.parameters((0, TOTAL), (3, 3))
  def test_takes_nobody_twice(self, count, expected):
    positions, drawn = self.shuffle(CLIENTS, count)
    self.assertEqual(positions.shape, (3000, expected))
    for row in positions.tolist():
      self.assertLen(set(row), expected)
    jax.tree.map(np.testing.assert_array_equal, drawn, tree.take(CLIENTS, positions))

  def test_follows_the_ids(self):
    order = np.array([3, 0, 4, 1, 2])
    for count in (0, 3):
      _, drawn = self.shuffle(CLIENTS, count)
      _, other = self.shuffle(tree.take(CLIENTS, order), count)
      jax.tree.map(np.testing.assert_array_equal, drawn, other)

  @parameterized.parameters((0, 3, 6, 20.5), (2, 4, 12, 31.3))
  def test_every_order_is_as_likely(self, count, total, orders, limit):
    clients = tree.take(CLIENTS, np.arange(total))
    positions, _ = self.shuffle(clients, count)
    kinds, counts = np.unique(positions, axis=0, return_counts=True)
    self.assertLen(kinds, orders)
    expected = 3000 / orders
    # With 5 and with 11 degrees of freedom, 0.1 % lie above.
    self.assertLess(((counts - expected)**2 / expected).sum(), limit)

  def test_a_sample_is_the_first_of_a_shuffle(self):
    some, _ = draw(CLIENTS, 4)
    everybody, _ = self.shuffle(CLIENTS, 0)
    np.testing.assert_array_equal(some, everybody[:, :4])


class PoolTest(parameterized.TestCase):

  @parameterized.parameters(((6, 3, 0, 8, 1),), ((0, 0),))
  def test_holds_every_row_once(self, sizes):
    clients = toys.federation(sizes, spare=3).clients
    pooled = sampling.pool(jax.tree.map(jnp.asarray, clients))
    self.assertEqual(pooled.size.tolist(), [sum(sizes)])
    own = np.asarray(pooled.index)[0, :sum(sizes)]
    np.testing.assert_array_equal(np.sort(own), np.sort(np.concatenate(toys.rows(clients))))

  def test_keeps_repeated_rows(self):
    clients = jax.tree.map(jnp.asarray, toys.clients([[4, 4, 1], [1]]))
    pooled = sampling.pool(clients)
    self.assertEqual(sorted(tree.take(pooled, 0).index[:4].tolist()), [1, 1, 4, 4])


class WeightsTest(absltest.TestCase):

  def test_by_size(self):
    toys.assert_close(sampling.by_size(CLIENTS), np.array(toys.SIZES) / sum(toys.SIZES))

  def test_uniform(self):
    toys.assert_close(sampling.uniform(CLIENTS), np.full(TOTAL, 1 / TOTAL))

  def test_by_size_within_groups(self):
    weights, held = sampling.by_size_within(
        CLIENTS._replace(size=np.array([6, 3, 0, 8, 0])), jnp.array([0, 2, 0, 0, 3]), 4)
    toys.assert_close(weights, np.array([
        [6 / 14, 0, 0, 8 / 14, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]))
    self.assertEqual(held.tolist(), [True, False, True, False])

  def test_clients_without_rows_have_weights(self):
    nobody = jax.tree.map(jnp.asarray, toys.clients([[], []]))
    for weigh in (sampling.by_size, sampling.uniform):
      toys.assert_close(weigh(nobody), np.full(2, 0.5))

  def test_label_counts_leave_out_padding(self):
    held = toys.clients([[0, 2, 2], [], [1, 3]], spare=1, padding=3)
    counts = sampling.label_counts(held, np.array([2, 0, 1, 2]), 3)
    toys.assert_close(counts, np.float32([[0, 2, 1], [0, 0, 0], [1, 0, 1]]))

  def test_round_metrics(self):
    cohort = Cohort(jnp.arange(3), jnp.array([1.0, 2.0, 5.0]), jnp.ones(3, bool),
                    jnp.array([2, 1, 0]), jnp.ones(3, jnp.int32))
    metrics = sampling.round_metrics(cohort)
    toys.assert_close(metrics['train/loss'], (2 * 1 + 1 * 2) / 3)
    self.assertEqual((metrics['messages_up'], metrics['messages_down']), (3, 3))
    self.assertIs(metrics['cohort'], cohort)
    nobody = cohort._replace(loss=jnp.zeros(3), size=jnp.zeros(3, jnp.int32))
    self.assertEqual(sampling.round_metrics(nobody)['train/loss'], 0)


class CentralTest(absltest.TestCase):

  def test_the_server_holds_all_of_its_rows(self):
    client = sampling.central(toys.hybrid(search=5, held_out=3).server)
    self.assertEqual((int(client.id), int(client.size)), (-1, 8))
    self.assertEqual(client.index.tolist(), [*range(8)])
    self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(client)}, {np.dtype('int32')})


if __name__ == '__main__':
  absltest.main()
