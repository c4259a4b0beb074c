"""Tests of FedOpt against its pseudo-code."""

from functools import cache, partial

from absl.testing import absltest, parameterized
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
from reference import fedopt as reference
from reference import rounds, toys

from hmm_jax.algorithms import fedopt
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.local import local_training

FEDERATION = toys.federation()
MOMENTS = {'b1': 0.8, 'b2': 0.95, 'eps': 1e-3}


def stepped(rate):
  """Returns FedOpt whose server is plain SGD at this rate, and whose clients count the same."""
  return fedopt.fedopt(
      toys.norm(), rounds.training(toys.norm), server=optax.sgd(rate), participation=3,
      weigh=sampling.uniform, mapper=mappers.one_by_one())


@cache
def program():
  return toys.jit(lambda rate, *given: stepped(rate).round(*given))


class FedOptTest(parameterized.TestCase):

  @parameterized.parameters(
      (optax.adam(0.1, **MOMENTS), partial(reference.adam, lr=0.1, **MOMENTS)),
      (fedopt.adagrad(0.1, 1e-3), partial(reference.adagrad, lr=0.1, tau=1e-3)))
  def test_equals_the_pseudo_code(self, server, twin):
    train = local_training(
        losses.supervised(toys.linear()), optax.sgd(rounds.LR), batch=99, epochs=3)
    algorithm = fedopt.fedopt(toys.linear(), train, server=server, mapper=mappers.one_by_one())
    states, _ = rounds.play(algorithm, 4, federation=FEDERATION)
    expected = reference.fedopt(
        toys.twin(toys.start(toys.linear)), toys.tables(FEDERATION), rounds=4, epochs=3,
        lr=rounds.LR, server=twin)
    variables = algorithm.views(states[-1], FEDERATION)['global']
    toys.assert_close(variables['params']['head'], expected, rtol=1e-4, atol=1e-5)

  @parameterized.parameters((0.01, 1e-3), (1e-5, 1e-3), (3.0, 0.0), (0.0, 0.0))
  def test_the_first_step_of_adagrad(self, gradient, tau):
    defaults = {name: setting.default for name, setting in fedopt.SETTINGS.items()}
    server = fedopt.server_optimizer(ConfigDict(
        {**defaults, 'optimizer': 'adagrad', 'lr': 0.5, 'eps': tau}))
    start = {'x': jnp.float32(gradient)}
    change, _ = server.update(start, server.init(start))
    wanted = -0.5 * gradient / (np.sqrt(tau**2 + gradient**2) + tau) if gradient else 0
    np.testing.assert_allclose(change['x'], wanted, rtol=1e-6)

  def test_one_step_of_sgd_at_rate_one_is_fedavg_weighed_as_told(self):
    states, metrics = rounds.play(stepped(1.0), 2, program=partial(program(), 1.0))
    expected, reports = rounds.averaged(weigh=sampling.uniform)
    toys.assert_close(states[-1].variables, expected[-1].variables)
    toys.assert_close(metrics, reports)

  def test_the_server_rate_leaves_statistics_alone(self):
    (_, doubled), _ = rounds.play(stepped(1.0), 1, program=partial(program(), 2.0))
    averaged = rounds.averaged(weigh=sampling.uniform)[0][1]
    toys.assert_close(doubled.variables['batch_stats'], averaged.variables['batch_stats'])
    toys.assert_far(doubled.variables['params'], averaged.variables['params'])


if __name__ == '__main__':
  absltest.main()
