"""Tests of training alone."""

from absl.testing import absltest
import jax
import numpy as np
import optax
from reference import fedavg as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.algorithms import local
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training

LR = 0.3
FEDERATION = toys.federation((6, 3, 0, 8, 1))


def play(participation, rounds):
  """Returns (models of all clients, metrics of each round)."""
  train = local_training(
      losses.cross_entropy(toys.linear()), optax.sgd(LR), batch=99, epochs=2)
  algorithm = local.local(
      toys.linear(), train, mapper=mappers.one_by_one(), participation=participation)
  state, metrics = toys.jit(algorithm.init)(toys.key(0), FEDERATION), []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, report = program(state, FEDERATION, toys.key(r))
    metrics.append(report)
  return algorithm.views(state, FEDERATION), metrics


def alone(k, rounds):
  x, y = toys.tables(FEDERATION)[k]
  return reference.client_update(
      toys.twin(toys.start(toys.linear)), x, y, reference.full_batches(y, 2 * rounds), lr=LR)


class LocalTest(absltest.TestCase):

  def test_every_client_trains_on_its_own_rows(self):
    views, metrics = play(participation=0, rounds=2)
    for k, model in enumerate(tree.unstack(views['clients'])):
      toys.assert_close(model['params']['head'], alone(k, rounds=2))
    self.assertEqual([float(metrics[0][f'messages_{way}']) for way in ('up', 'down')], [0, 0])

  def test_who_does_not_take_part_stays(self):
    views, metrics = play(participation=2, rounds=3)
    ids = np.concatenate([metric['cohort'].id for metric in metrics]).tolist()
    counts = [ids.count(i) for i in toys.IDS[:5]]
    self.assertEqual(sum(counts), 6)
    for k, model in enumerate(tree.unstack(views['clients'])):
      toys.assert_close(model['params']['head'], alone(k, rounds=counts[k]))

  def test_models_are_seen_as_clients_and_as_locals(self):
    views, _ = play(participation=2, rounds=1)
    self.assertEqual(views.keys(), {'clients', 'locals'})
    jax.tree.map(np.testing.assert_array_equal, views['clients'], views['locals'])


if __name__ == '__main__':
  absltest.main()
