"""Tests of FeSEM against its pseudo-code."""

from functools import cache

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import fesem as reference
from reference import rounds, toys

from hmm_jax import tree
from hmm_jax.algorithms import fedavg, fesem
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.types import InputError

FEDERATION = toys.federation((6, 3, 0, 8, 1, 4, 5))


def training(network, batch):
  return local_training(
      losses.supervised(network()), optax.sgd(rounds.LR), batch=batch, epochs=2)


def make(models, network=toys.linear, *, batch=99, participation=3):
  return fesem.fesem(network(), training(network, batch), models=models,
                     participation=participation, mapper=mappers.one_by_one())


def play(algorithm, count, state=None):
  # From this key some clients change their center.
  state = algorithm.init(toys.key(6), FEDERATION) if state is None else state
  return rounds.play(algorithm, count, federation=FEDERATION, state=state)


@cache
def played():
  """Returns (the algorithm, every state, metrics of each round) of two centers."""
  algorithm = make(2)
  return algorithm, *play(algorithm, 6)


class FeSEMTest(absltest.TestCase):

  def test_equals_the_pseudo_code(self):
    algorithm, states, metrics = played()
    models, cluster = reference.fesem(
        toys.twin(tree.take(states[0].centers, 0)), toys.tables(FEDERATION),
        states[0].cluster.tolist(), centers=2, cohorts=rounds.positions(metrics), epochs=2,
        lr=rounds.LR)
    self.assertGreater(len(set(cluster)), 1)
    self.assertNotEqual(cluster, states[0].cluster.tolist())
    self.assertEqual(states[-1].cluster.tolist(), cluster)
    for got, wanted in zip(tree.unstack(states[-1].centers), models, strict=True):
      toys.assert_close(got['params']['head'], wanted, rtol=1e-4, atol=1e-5)
    views = algorithm.views(states[-1], FEDERATION)
    for got, m in zip(tree.unstack(views['clients']), cluster, strict=True):
      toys.assert_close(got['params']['head'], models[m], rtol=1e-4, atol=1e-5)
    toys.assert_close(algorithm.gauges(states[-1])['cluster'], np.array(cluster, np.float32))
    self.assertEqual((metrics[0]['messages_up'], metrics[0]['messages_down']), (3, 3))

  def test_begins_with_one_model_and_even_clusters(self):
    state = make(3).init(toys.key(6), FEDERATION)
    first = tree.take(state.centers, 0)
    for center in tree.unstack(state.centers):
      toys.assert_close(center, first, atol=0)
    self.assertCountEqual(np.bincount(state.cluster).tolist(), [3, 2, 2])

  def test_the_first_clusters_are_drawn_by_id(self):
    clients = FEDERATION.clients
    deals = [fesem.dealt(clients, 3, toys.key(seed)).tolist() for seed in range(4)]
    self.assertGreater(len({tuple(deal) for deal in deals}), 2)
    order = np.array([3, 0, 6, 4, 1, 5, 2])
    moved = fesem.dealt(tree.take(clients, order), 3, toys.key(0))
    self.assertEqual(moved.tolist(), np.array(deals[0])[order].tolist())

  def test_the_first_round_keeps_the_first_clusters(self):
    _, states, _ = played()
    self.assertEqual(states[1].cluster.tolist(), states[0].cluster.tolist())

  def test_a_center_without_members_stays(self):
    algorithm, (state, *_), _ = played()
    far = jax.tree.map(lambda x: np.stack([x[0], x[1] + 50]), state.centers)
    states, _ = play(algorithm, 2, state._replace(
        round=jnp.int32(1), centers=far, cluster=jnp.zeros_like(state.cluster)))
    self.assertEqual(set(states[-1].cluster.tolist()), {0})
    toys.assert_close(tree.take(states[-1].centers, 1), tree.take(far, 1), atol=0)

  def test_the_only_center_near_is_fedavg_and_statistics_count_in_no_distance(self):
    # Sixteen steps take a client's running mean most of the way to the other center's.
    settings = {'batch': 1, 'participation': 0}
    algorithm = make(2, toys.norm, **settings)
    start = algorithm.init(toys.key(6), FEDERATION)
    shifted = lambda x, m, by: x.at[m].set(x[m] + by)
    start = start._replace(
        round=jnp.int32(1), cluster=jnp.zeros_like(start.cluster), centers={
            'params': jax.tree.map(lambda x: shifted(x, 1, 50), start.centers['params']),
            'batch_stats': jax.tree.map(
                lambda x: shifted(x, 0, 1e4), start.centers['batch_stats'])})
    (_, after), _ = play(algorithm, 1, start)
    self.assertEqual(set(after.cluster.tolist()), {0})
    averaging = fedavg.fedavg(toys.norm(), training(toys.norm, 1), mapper=mappers.one_by_one())
    (_, averaged), _ = play(averaging, 1, fedavg.FedAvgState(
        jnp.int32(1), tree.take(start.centers, 0)))
    toys.assert_close(tree.take(after.centers, 0), averaged.variables)

  def test_refuses_no_center(self):
    with self.assertRaisesRegex(InputError, 'got models=0'):
      make(0)

  def test_traffic_is_a_model_each_way(self):
    size = tree.nbytes(jax.eval_shape(toys.norm().init, toys.key(0)))
    self.assertEqual(make(2, toys.norm).traffic, (size, size))


if __name__ == '__main__':
  absltest.main()
