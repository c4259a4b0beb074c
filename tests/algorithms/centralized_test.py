"""Tests of training on all rows pooled."""

from absl.testing import absltest
import numpy as np
import optax
from reference import fedavg as reference
from reference import toys

from hmm_jax.algorithms import centralized
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training

LR = 0.3
FEDERATION = toys.federation((6, 3, 0, 8, 1))


def play(federation, *, batch, rounds):
  train = local_training(
      losses.cross_entropy(toys.linear()), optax.sgd(LR), batch=batch, epochs=2)
  algorithm = centralized.centralized(toys.linear(), train, mapper=mappers.one_by_one())
  state = toys.jit(algorithm.init)(toys.key(0), federation)
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, metrics = program(state, federation, toys.key(r))
  return algorithm.views(state, federation)['global'], metrics


class CentralizedTest(absltest.TestCase):

  def test_equals_gradient_descent_on_the_pooled_rows(self):
    variables, metrics = play(FEDERATION, batch=99, rounds=2)
    x, y = (np.concatenate(parts) for parts in zip(*toys.tables(FEDERATION), strict=True))
    expected = reference.client_update(
        toys.twin(toys.start(toys.linear)), x, y, reference.full_batches(y, 4), lr=LR)
    toys.assert_close(variables['params']['head'], expected)
    self.assertEqual((metrics['messages_up'], metrics['messages_down']), (0, 0))
    self.assertEqual(metrics['cohort'].size.tolist(), [18])

  def test_minibatches_are_drawn_from_all_rows(self):
    # 18 rows in batches of 4 are 5 steps an epoch, whoever holds them.
    _, metrics = play(FEDERATION, batch=4, rounds=1)
    self.assertEqual(metrics['cohort'].steps.tolist(), [10])

  def test_who_holds_a_row_does_not_matter(self):
    pooled = np.sort(np.concatenate(toys.rows(FEDERATION.clients)))
    other = FEDERATION._replace(clients=toys.clients(np.split(pooled, [1, 9, 12, 13])))
    toys.assert_close(play(FEDERATION, batch=4, rounds=1)[0], play(other, batch=4, rounds=1)[0])


if __name__ == '__main__':
  absltest.main()
