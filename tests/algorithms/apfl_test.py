"""Tests of APFL against its pseudo-code."""

from functools import cache, partial

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import apfl as reference
from reference import rounds, toys

from hmm_jax import tree
from hmm_jax.algorithms import apfl
from hmm_jax.client import losses, mappers, sampling

LR = rounds.LR
FEDERATION = rounds.FEDERATION


def make(network=toys.linear, *, batch=99, epochs=3, alpha_lr=0.8, **settings):
  local = apfl.mixture_training(losses.supervised(network()), rounds.OPTIMIZER,
                                alpha_lr=alpha_lr, batch=batch, epochs=epochs)
  return apfl.apfl(network(), local, mapper=mappers.one_by_one(), **settings)


@cache
def program():
  """Returns a compiled round, whose first argument is the learning rate of the shares."""
  return toys.jit(lambda rate, *given: make(alpha_lr=rate, participation=2).round(*given))


@cache
def alone():
  """Plays rounds in which clients listen to their own models only."""
  algorithm = make(toys.norm, batch=2, epochs=2, alpha=1.0, alpha_lr=0.0, participation=3)
  return algorithm, *rounds.play(algorithm, 2)


class APFLTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('', 0.2, 0.8, ()), ('with_large_steps', 0.5, 90.0, (0,)),
      ('with_steps_uphill', 0.5, -90.0, (1,)))
  def test_equals_the_pseudo_code(self, alpha, alpha_lr, clipped):
    algorithm = make(alpha=alpha, participation=2)
    states, metrics = rounds.play(algorithm, 4, program=partial(program(), alpha_lr))
    cohorts = rounds.positions(metrics)
    self.assertIn(2, set().union(*cohorts))  # This client has no rows.
    w, v, alphas, mixtures = reference.apfl(
        toys.twin(toys.start(toys.linear)), toys.tables(FEDERATION), cohorts=cohorts, steps=3,
        lr=LR, alpha=alpha, alpha_lr=alpha_lr, momentum=0.8)
    self.assertContainsSubset(clipped, alphas)
    close = {'rtol': 1e-4, 'atol': 1e-5}
    views = algorithm.views(states[-1], FEDERATION)
    toys.assert_close(views['global']['params']['head'], w, **close)
    toys.assert_close(algorithm.gauges(states[-1])['alpha'], np.array(alphas), **close)
    for k in range(5):
      toys.assert_close(tree.take(states[-1].personal, k)['params']['head'], v[k], **close)
      toys.assert_close(
          tree.take(views['clients'], k)['params']['head'], mixtures[k], **close)
    self.assertEqual((metrics[0]['messages_up'], metrics[0]['messages_down']), (2, 2))

  def test_shares_begin_at_one_half(self):
    self.assertEqual(make().init(toys.key(0), FEDERATION).alpha.tolist(), [0.5] * 5)

  def test_the_global_path_is_fedavg(self):
    algorithm, states, metrics = alone()
    expected, reports = rounds.averaged()
    toys.assert_close(algorithm.views(states[-1], FEDERATION)['global'], expected[-1].variables)
    toys.assert_close(metrics, reports)

  def test_a_share_of_one_that_stays_is_local_training(self):
    # In the first round own models and the global one begin the same.
    algorithm, states, metrics = alone()
    cohort = np.array(rounds.positions(metrics)[0])
    clients = algorithm.views(states[1], FEDERATION)['clients']
    toys.assert_close(clients, states[1].personal)
    trained = tree.take(clients, cohort)
    toys.assert_far(*tree.unstack(trained)[:2])
    weights = sampling.by_size(tree.take(FEDERATION.clients, cohort))
    toys.assert_close(tree.mix(weights, trained), states[1].variables)

  def test_traffic_is_a_model_each_way(self):
    size = tree.nbytes(jax.eval_shape(toys.norm().init, toys.key(0)))
    self.assertEqual(make(toys.norm).traffic, (size, size))


if __name__ == '__main__':
  absltest.main()
