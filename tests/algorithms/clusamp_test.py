"""Tests of clustered sampling against its pseudo-code."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import clusamp as reference
from reference import rounds, toys

from hmm_jax import tree
from hmm_jax.algorithms import clusamp
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.types import Clients, Cohort, InputError

STEPS = 3
ORDERS = {'size': (clusamp.by_size, 0), 'similarity': (clusamp.by_similarity, 2)}
FEDERATION = jax.device_put(rounds.FEDERATION)


def make(network=toys.linear, local=None, **settings):
  local = local or local_training(
      losses.supervised(network()), optax.sgd(rounds.LR), batch=99, epochs=STEPS)
  return clusamp.clusamp(network(), local, mapper=mappers.one_by_one(), **settings)


@cache
def played(order):
  """Returns the states and metrics of some rounds."""
  _, participation = ORDERS[order]
  return rounds.play(make(order=order, participation=participation), 6, federation=FEDERATION)


def clients(sizes, ids):
  return Clients(np.int32(ids), np.zeros((len(ids), 1), np.int32), np.int32(sizes))


distributions = toys.jit(clusamp.distributions, static_argnums=1)
by_similarity = toys.jit(clusamp.by_similarity)


def shares(sizes, count):
  """Returns the distributions of clients along the line, in float64."""
  return np.asarray(distributions(np.int32(sizes), count), np.float64)


DEALS = (((8, 6, 5, 3, 1), 2), ((0, 4, 0, 9, 2), 3), ((5, 3), 4), ((1,), 1),
         (tuple(range(30, 0, -1)), 7))


class ClusampTest(parameterized.TestCase):

  @parameterized.parameters(*DEALS)
  def test_distributions_are_poured(self, sizes, count):
    got = shares(sizes, count)
    wanted = np.array(reference.distributions(sizes, count), float)
    np.testing.assert_allclose(got, wanted, atol=2e-7)
    np.testing.assert_array_equal(got > 0, wanted > 0)
    # One draw from each makes a client's mean number of draws m n_i / n.
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(got.sum(axis=0), count * np.array(sizes) / sum(sizes), atol=1e-6)
    # Draws vary less than multinomial ones.
    p = np.array(sizes) / sum(sizes)
    ours = (got * (1 - got)).sum(axis=0)
    self.assertTrue(np.all(ours <= count * p * (1 - p) + 1e-6))
    if len(sizes) > 1 and count > 1:
      self.assertLess(ours.sum(), 0.95 * (count * p * (1 - p)).sum())

  def test_large_clients_neither_overflow_nor_leak(self):
    sizes, count = [7_000_000] * 300, 100
    np.testing.assert_array_equal(
        shares(sizes, count) > 0, np.kron(np.eye(count), np.ones(3)) > 0)
    sizes = np.random.default_rng(0).integers(10**6, 10**7, 300)
    np.testing.assert_allclose(
        shares(sizes, count), np.array(reference.distributions(sizes, count), float), atol=1e-6)

  def test_clients_without_rows_are_alike_where_nobody_has_any(self):
    np.testing.assert_allclose(shares([0, 0, 0, 0], 2), np.kron(np.eye(2), [0.5, 0.5]))

  def test_the_largest_come_first_and_ties_go_by_id(self):
    line = clusamp.by_size(clients([3, 8, 3, 1], [9, 4, 2, 7]), ())
    self.assertEqual(line.tolist(), [1, 2, 0, 3])

  def test_leaves_are_those_of_wards_tree(self):
    leaves = toys.jit(clusamp.leaves)
    for seed in range(4):
      points = np.random.default_rng(seed).normal(size=(13, 3))
      gaps = ((points[:, None] - points[None])**2).sum(axis=2)
      self.assertEqual(leaves(np.float32(gaps)).tolist(), reference.ward_leaves(points))

  def test_similar_updates_are_side_by_side(self):
    # In a half plane the angle between two directions is the distance of their bearings.
    for seed in range(4):
      rng = np.random.default_rng(seed)
      bearings, lengths = rng.uniform(0, np.pi, 12), rng.uniform(0.1, 9, 12)
      updates = lengths[:, None] * np.stack([np.cos(bearings), np.sin(bearings)], axis=1)
      line = by_similarity(clients([1] * 12, range(12)), np.float32(updates))
      self.assertEqual(line.tolist(), reference.ward_leaves(bearings[:, None]))

  def test_a_tree_of_one_or_two_leaves(self):
    leaves = toys.jit(clusamp.leaves)
    self.assertEqual(leaves(jnp.zeros((1, 1))).tolist(), [0])
    self.assertEqual(leaves(jnp.ones((2, 2))).tolist(), [0, 1])

  def test_angles_by_hand(self):
    flat = np.float32([[1, 0, 0], [0, 0, 0], [3, 3, 0], [-2, 0, 0], [0, 0, 0], [1, 2, 3]])
    updates = {'kernel': flat[:, :2], 'bias': flat[:, 2]}
    got = clusamp.angles(updates)
    wanted = [[reference.angle(a, b) for b in flat.astype(np.float64)]
              for a in flat.astype(np.float64)]
    # Near 1, an arccosine has half the digits of its argument.
    np.testing.assert_allclose(got, wanted, atol=1e-3)

  def test_equal_updates_are_in_one_cluster(self):
    # Three groups of 12 rows each; the last was never drawn.
    group = np.array([0, 1, 2, 0, 1, 2, 0, 2, 0, 1, 2, 1])
    sizes = np.array([3, 6, 5, 4, 4, 4, 2, 2, 3, 1, 1, 1])
    directions = np.float32([[1, 2], [1, -2], [0, 0]])
    updates = directions[group] * np.float32([1, 2, 1, 3, 1, 1, 1, 1, 2, 2, 1, 5])[:, None]
    ids = [5, 3, 8, 1, 9, 0, 2, 7, 11, 4, 6, 10]
    line = by_similarity(clients(sizes, ids), updates)
    for row in np.array(reference.distributions(sizes[line], 3), float):
      self.assertLen(set(group[line][row > 0].tolist()), 1)

  def test_similarity_does_not_depend_on_the_positions(self):
    rng = np.random.default_rng(1)
    ids, move = rng.permutation(20)[:12], rng.permutation(12)
    line = lambda ids, updates: by_similarity(clients([1] * 12, ids), np.float32(updates))
    for updates in (rng.normal(size=(12, 2)), np.zeros((12, 2)),
                    rng.normal(size=(3, 2))[[0, 1, 2, 1, 1, 0, 2, 0, 2, 2, 0, 1]]):
      still, moved = line(ids, updates), line(ids[move], updates[move])
      self.assertEqual(ids[move][moved].tolist(), ids[still].tolist())
    self.assertEqual(ids[line(ids, np.zeros((12, 2)))].tolist(), sorted(ids))

  @parameterized.named_parameters(('by_size', 'size'), ('by_similarity', 'similarity'))
  def test_equals_the_pseudo_code(self, order):
    states, metrics = played(order)
    cohorts = rounds.positions(metrics)
    _, participation = ORDERS[order]
    self.assertEqual({len(cohort) for cohort in cohorts}, {participation or 5})
    if not participation:  # A client drawn twice counts twice.
      self.assertTrue(any(len(set(cohort)) < 5 for cohort in cohorts))
    params, updates = reference.clusamp(
        toys.twin(toys.start(toys.linear)), toys.tables(rounds.FEDERATION), cohorts=cohorts,
        epochs=STEPS, lr=rounds.LR)
    close = {'rtol': 1e-4, 'atol': 1e-5}
    toys.assert_close(states[-1].variables['params']['head'], params, **close)
    if order == 'size':
      self.assertEqual(states[-1].updates, ())
    else:
      for k, update in enumerate(updates):
        toys.assert_close(tree.take(states[-1].updates, k)['head'], update, **close)

  @parameterized.named_parameters(('by_size', 'size'), ('by_similarity', 'similarity'))
  def test_draws_one_client_from_each_cluster(self, order):
    state = jax.tree.map(jnp.asarray, played(order)[0][-1])
    line = ORDERS[order][0](FEDERATION.clients, state.updates)
    r = np.array(reference.distributions(FEDERATION.clients.size[line], 3), float)
    idle = lambda start, examples, client, extra, key: (
        start, extra, Cohort(client.id, 0.0, True, client.size, 0))
    algorithm = make(local=idle, order=order, participation=3)
    keys = jax.random.split(toys.key(7), 2000)
    ids = toys.jit(jax.vmap(lambda key: algorithm.round(state, FEDERATION, key)[1]['cohort'].id))(
        keys)
    frequency = (np.asarray(ids)[..., None] == np.asarray(FEDERATION.clients.id[line])).mean(axis=0)
    np.testing.assert_allclose(frequency, r, atol=0.05)
    np.testing.assert_array_equal(frequency[r == 0], 0)

  def test_statistics_are_no_part_of_an_update(self):
    algorithm = make(toys.norm, order='similarity')
    state = jax.eval_shape(algorithm.init, toys.key(0), FEDERATION)
    self.assertEqual(jax.tree.structure(state.updates),
                     jax.tree.structure(state.variables['params']))

  def test_traffic_is_a_model(self):
    size = tree.nbytes(jax.eval_shape(toys.norm().init, toys.key(0)))
    self.assertEqual(make(toys.norm).traffic, (size, size))

  def test_orders_by_size_unless_told(self):
    state = jax.eval_shape(make().init, toys.key(0), FEDERATION)
    self.assertEqual(state.updates, ())

  def test_refuses(self):
    with self.assertRaisesRegex(InputError, 'got order=random'):
      make(order='random')
    with self.assertRaisesRegex(InputError, 'got participation=-1'):
      make(participation=-1)


if __name__ == '__main__':
  absltest.main()
