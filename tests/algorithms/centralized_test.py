"""Tests of training on all rows pooled."""

from functools import cache

from absl.testing import absltest
import numpy as np
import optax
from reference import fedavg as reference
from reference import rounds, toys

from hmm_jax.algorithms import centralized
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training

LR = rounds.LR
FEDERATION = rounds.FEDERATION


@cache
def make(batch):
  train = local_training(
      losses.supervised(toys.linear()), optax.sgd(LR), batch=batch, epochs=2)
  return centralized.centralized(toys.linear(), train, mapper=mappers.one_by_one())


class CentralizedTest(absltest.TestCase):

  def test_equals_gradient_descent_on_the_pooled_rows(self):
    states, (_, metrics) = rounds.play(make(99), 2)
    x, y = (np.concatenate(parts) for parts in zip(*toys.tables(FEDERATION), strict=True))
    expected = reference.client_update(
        toys.twin(toys.start(toys.linear)), x, y, reference.full_batches(y, 4), lr=LR)
    variables = make(99).views(states[-1], FEDERATION)['global']
    toys.assert_close(variables['params']['head'], expected)
    self.assertEqual((metrics['messages_up'], metrics['messages_down']), (0, 0))
    self.assertEqual(metrics['cohort'].size.tolist(), [18])

  def test_minibatches_are_drawn_from_all_rows(self):
    # 18 rows in batches of 4 are 5 steps an epoch, whoever holds them.
    _, [metrics] = rounds.play(make(4), 1)
    self.assertEqual(metrics['cohort'].steps.tolist(), [10])

  def test_who_holds_a_row_does_not_matter(self):
    pooled = np.sort(np.concatenate(toys.rows(FEDERATION.clients)))
    other = FEDERATION._replace(clients=toys.clients(np.split(pooled, [1, 9, 12, 13])))
    (mine, _), (others, _) = (rounds.play(make(4), 1, federation=f) for f in (FEDERATION, other))
    toys.assert_close(others, mine)


if __name__ == '__main__':
  absltest.main()
