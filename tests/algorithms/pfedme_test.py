"""Tests of pFedMe against its pseudo-code."""

import inspect

from absl.testing import absltest, parameterized
import numpy as np
import optax
from reference import fedavg as fedavg_twin
from reference import pfedme as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.algorithms import pfedme
from hmm_jax.client import losses, mappers

LR, INNER_LR = 0.05, 0.1
FEDERATION = toys.federation((6, 3, 0, 8, 1))
CLOSE = {'rtol': 1e-4, 'atol': 1e-5}


def training(network=toys.linear, optimizer=None, **settings):
  return pfedme.moreau_training(
      losses.cross_entropy(network()), optimizer or optax.sgd(INNER_LR), lr=LR,
      **{'batch': 99, 'epochs': 3, **settings})


def make(network=toys.linear, *, beta=1.0, participation=0, **settings):
  return pfedme.pfedme(network(), training(network, **settings), beta=beta,
                       mapper=mappers.one_by_one(), participation=participation)


def play(algorithm, rounds):
  """Returns (the views at the end, the metrics of each round)."""
  state, metrics = toys.jit(algorithm.init)(toys.key(0), FEDERATION), []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, report = program(state, FEDERATION, toys.key(r))
    metrics.append(report)
  return algorithm.views(state, FEDERATION), metrics


class PFedMeTest(parameterized.TestCase):

  @parameterized.parameters({'beta': 1.0, 'participation': 0}, {'beta': 1.6, 'participation': 2})
  def test_equals_the_pseudo_code(self, beta, participation):
    views, metrics = play(
        make(beta=beta, participation=participation, lam=4.0, inner_steps=3), rounds=4)
    cohorts = [[toys.IDS.index(i) for i in report['cohort'].id.tolist()] for report in metrics]
    w, theta = reference.pfedme(
        toys.twin(toys.start(toys.linear)), toys.tables(FEDERATION), cohorts=cohorts, steps=3,
        beta=beta, lr=LR, inner_lr=INNER_LR, inner_steps=3, lam=4.0)
    toys.assert_close(views['global']['params']['head'], w, **CLOSE)
    for got, wanted in zip(tree.unstack(views['clients']), theta, strict=True):
      toys.assert_close(got['params']['head'], wanted, **CLOSE)

  def test_defaults_are_the_published_ones(self):
    local = inspect.signature(pfedme.moreau_training).parameters
    server = inspect.signature(pfedme.pfedme).parameters
    self.assertEqual((local['lam'].default, local['inner_steps'].default,
                      server['beta'].default), (15, 5, 1))

  def test_the_own_model_solves_the_proximal_problem(self):
    # At its minimum, lam (w - theta) is the gradient there.
    local = toys.jit(training(lam=4.0, inner_steps=400, epochs=1))
    start = toys.start(toys.linear)
    _, theta, _ = local(start, FEDERATION.examples, toys.one(FEDERATION, 0), (), toys.key(0))
    x, y = toys.tables(FEDERATION)[0]
    slope = fedavg_twin.softmax_regression.gradient(toys.twin(theta), x, y)
    pull = tree.scale(4.0, tree.sub(start['params'], theta['params']))
    toys.assert_close(pull['head'], slope, **CLOSE)

  def test_each_minibatch_has_an_optimizer_of_its_own(self):
    # With momentum, one minibatch of two steps is not two of one.
    momentum = optax.sgd(INNER_LR, momentum=0.9)
    start, client = toys.start(toys.linear), toys.one(FEDERATION, 0)
    for settings in ({'inner_steps': 1, 'epochs': 3}, {'inner_steps': 3, 'epochs': 1}):
      heavy, plain = (
          toys.jit(training(optimizer=optimizer, lam=4.0, **settings))(
              start, FEDERATION.examples, client, (), toys.key(0))[1]
          for optimizer in (momentum, optax.sgd(INNER_LR)))
      if settings['inner_steps'] == 1:
        toys.assert_close(heavy, plain)
      else:
        toys.assert_far(heavy, plain)

  @parameterized.parameters(1, 3)
  def test_the_loss_is_that_of_the_own_model_before_its_last_step(self, inner_steps):
    _, _, report = toys.jit(training(inner_steps=inner_steps, epochs=1, lam=4.0))(
        toys.start(toys.linear), FEDERATION.examples, toys.one(FEDERATION, 0), (), toys.key(0))
    x, y = toys.tables(FEDERATION)[0]
    _, theta = reference.local_update(
        toys.twin(toys.start(toys.linear)), x, y, fedavg_twin.full_batches(y, 1), lr=LR,
        inner_lr=INNER_LR, inner_steps=inner_steps - 1, lam=4.0)
    toys.assert_close(report.loss, fedavg_twin.softmax_regression.losses(theta, x, y).mean())

  def test_a_client_without_rows_changes_nothing(self):
    views, _ = play(make(), rounds=1)
    toys.assert_close(tree.take(views['clients'], 2), toys.start(toys.linear), atol=0)
    self.assertTrue(tree.all_finite(views))

  def test_statistics_are_those_of_the_own_models(self):
    views, _ = play(make(toys.norm, beta=2.0, inner_steps=2), rounds=1)
    statistics = lambda variables: variables['batch_stats']['trunk']['BatchNorm_0']['mean']
    wanted = np.stack([(1 - 0.9**6) * x.mean(axis=0) if len(y) else np.zeros(4)
                       for x, y in toys.tables(FEDERATION)])
    toys.assert_close(statistics(views['clients']), wanted)
    toys.assert_close(statistics(views['global']), wanted.mean(axis=0))

  def test_traffic_is_a_model_each_way(self):
    algorithm = make(toys.norm, participation=2)
    size = tree.nbytes(toys.start(toys.norm))
    self.assertEqual((algorithm.traffic.up, algorithm.traffic.down), (size, size))
    _, (metrics,) = play(algorithm, rounds=1)
    self.assertEqual((metrics['messages_up'], metrics['messages_down']), (2, 2))


if __name__ == '__main__':
  absltest.main()
