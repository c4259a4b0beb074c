"""Tests of training alone."""

from absl.testing import absltest
import jax
import numpy as np
import optax
from reference import fedavg as reference
from reference import rounds, toys

from hmm_jax import tree
from hmm_jax.algorithms import local
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training

FEDERATION = rounds.FEDERATION


class LocalTest(absltest.TestCase):

  def test_who_takes_part_trains_on_its_own_rows_and_the_others_stay(self):
    train = local_training(
        losses.supervised(toys.linear()), optax.sgd(rounds.LR), batch=99, epochs=2)
    algorithm = local.local(
        toys.linear(), train, mapper=mappers.one_by_one(), participation=2)
    states, metrics = rounds.play(algorithm, 2)
    cohorts = np.ravel(rounds.positions(metrics)).tolist()
    counts = [cohorts.count(k) for k in range(5)]
    self.assertIn(0, counts)
    views = algorithm.views(states[-1], FEDERATION)
    tables = toys.tables(FEDERATION)
    for (x, y), count, model in zip(tables, counts, tree.unstack(views['clients']), strict=True):
      toys.assert_close(model['params']['head'], reference.client_update(
          toys.twin(toys.start(toys.linear)), x, y, reference.full_batches(y, 2 * count),
          lr=rounds.LR))
    self.assertEqual([float(metrics[0][f'messages_{way}']) for way in ('up', 'down')], [0, 0])
    self.assertEqual(views.keys(), {'clients', 'locals'})
    jax.tree.map(np.testing.assert_array_equal, views['clients'], views['locals'])


if __name__ == '__main__':
  absltest.main()
