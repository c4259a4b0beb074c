"""Tests of pFedMe against its pseudo-code."""

from functools import cache
import inspect

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import fedavg as fedavg_twin
from reference import pfedme as reference
from reference import rounds, toys

from hmm_jax import tree
from hmm_jax.algorithms import pfedme
from hmm_jax.client import losses, mappers

LR, INNER_LR = 0.05, 0.1
FEDERATION = rounds.FEDERATION
CLOSE = {'rtol': 1e-4, 'atol': 1e-5}


def training(network=toys.linear, optimizer=None, **settings):
  return pfedme.moreau_training(
      losses.supervised(network()), optimizer or optax.sgd(INNER_LR), lr=LR,
      **{'batch': 99, 'epochs': 3, **settings})


def make(network=toys.linear, *, beta=1.0, participation=0, **settings):
  return pfedme.pfedme(network(), training(network, **settings), beta=beta,
                       mapper=mappers.one_by_one(), participation=participation)


@cache
def with_momentum(inner_steps, epochs):
  """Returns one client's compiled training, as a function of its inner optimizer's momentum."""
  client = jax.tree.map(jnp.asarray, toys.one(FEDERATION, 0))
  return toys.jit(lambda momentum: training(
      optimizer=optax.sgd(INNER_LR, momentum=momentum), lam=4.0, inner_steps=inner_steps,
      epochs=epochs)(toys.start(toys.linear), FEDERATION.examples, client, (), toys.key(0)))


class PFedMeTest(absltest.TestCase):

  def test_equals_the_pseudo_code(self):
    algorithm = make(beta=1.6, participation=2, lam=4.0, inner_steps=3)
    states, metrics = rounds.play(algorithm, 4)
    cohorts = rounds.positions(metrics)
    self.assertIn(2, set().union(*cohorts))  # This client has no rows.
    w, theta = reference.pfedme(
        toys.twin(toys.start(toys.linear)), toys.tables(FEDERATION), cohorts=cohorts, steps=3,
        beta=1.6, lr=LR, inner_lr=INNER_LR, inner_steps=3, lam=4.0)
    views = algorithm.views(states[-1], FEDERATION)
    toys.assert_close(views['global']['params']['head'], w, **CLOSE)
    for got, wanted in zip(tree.unstack(views['clients']), theta, strict=True):
      toys.assert_close(got['params']['head'], wanted, **CLOSE)
    self.assertEqual((metrics[0]['messages_up'], metrics[0]['messages_down']), (2, 2))

  def test_defaults_are_the_published_ones(self):
    local = inspect.signature(pfedme.moreau_training).parameters
    server = inspect.signature(pfedme.pfedme).parameters
    self.assertEqual((local['lam'].default, local['inner_steps'].default,
                      server['beta'].default), (15, 5, 1))

  def test_each_minibatch_has_an_optimizer_of_its_own(self):
    # With momentum, one minibatch of two steps is not two of one.
    (_, heavy, _), (_, plain, _) = (with_momentum(1, 3)(m) for m in (0.9, 0.0))
    toys.assert_close(heavy, plain)
    (_, heavy, _), (_, plain, _) = (with_momentum(3, 1)(m) for m in (0.9, 0.0))
    toys.assert_far(heavy, plain)

  def test_the_loss_is_that_of_the_own_model_before_its_last_step(self):
    _, _, report = with_momentum(3, 1)(0.0)
    x, y = toys.tables(FEDERATION)[0]
    _, theta = reference.local_update(
        toys.twin(toys.start(toys.linear)), x, y, fedavg_twin.full_batches(y, 1), lr=LR,
        inner_lr=INNER_LR, inner_steps=2, lam=4.0)
    toys.assert_close(report.loss, fedavg_twin.softmax_regression.losses(theta, x, y).mean())

  def test_statistics_are_those_of_the_own_models(self):
    algorithm = make(toys.norm, beta=2.0, inner_steps=2)
    views = algorithm.views(rounds.play(algorithm, 1)[0][1], FEDERATION)
    statistics = lambda variables: variables['batch_stats']['trunk']['BatchNorm_0']['mean']
    wanted = np.stack([(1 - 0.9**6) * x.mean(axis=0) if len(y) else np.zeros(4)
                       for x, y in toys.tables(FEDERATION)])
    toys.assert_close(statistics(views['clients']), wanted)
    toys.assert_close(statistics(views['global']), wanted.mean(axis=0))

  def test_traffic_is_a_model_each_way(self):
    size = tree.nbytes(jax.eval_shape(toys.norm().init, toys.key(0)))
    self.assertEqual(make(toys.norm).traffic, (size, size))


if __name__ == '__main__':
  absltest.main()
