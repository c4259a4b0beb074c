"""Tests of FedOpt against its pseudo-code."""

from functools import partial

from absl.testing import absltest, parameterized
import optax
from reference import fedavg as fedavg_twin
from reference import fedopt as reference
from reference import toys

from hmm_jax.algorithms import fedavg, fedopt
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training

LR = 0.3
FEDERATION = toys.federation()
SERVERS = {
    'momentum': (optax.sgd(0.5, momentum=0.8), partial(reference.momentum, lr=0.5, beta=0.8)),
    'adam': (optax.adam(0.1, b1=0.8, b2=0.95, eps=1e-3),
             partial(reference.adam, lr=0.1, b1=0.8, b2=0.95, eps=1e-3)),
    'yogi': (optax.yogi(0.1, b1=0.8, b2=0.95, eps=1e-3),
             partial(reference.yogi, lr=0.1, b1=0.8, b2=0.95, eps=1e-3)),
}


def training(network):
  return local_training(losses.cross_entropy(network()), optax.sgd(LR), batch=99, epochs=3)


def play(algorithm, rounds):
  state = toys.jit(algorithm.init)(toys.key(0), FEDERATION)
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, _ = program(state, FEDERATION, toys.key(r))
  return algorithm.views(state, FEDERATION)['global']


class FedOptTest(parameterized.TestCase):

  @parameterized.parameters(*SERVERS)
  def test_equals_the_pseudo_code(self, name):
    server, rule = SERVERS[name]
    variables = play(fedopt.fedopt(toys.linear(), training(toys.linear), server=server,
                                   mapper=mappers.one_by_one()), rounds=4)
    expected = reference.fedopt(
        toys.twin(toys.start(toys.linear)), toys.tables(FEDERATION), rounds=4, epochs=3, lr=LR,
        server=rule)
    toys.assert_close(variables['params']['head'], expected, rtol=1e-4, atol=1e-5)

  def test_one_step_of_sgd_at_rate_one_is_fedavg(self):
    settings = {'mapper': mappers.one_by_one(), 'participation': 2}
    local = training(toys.norm)
    averaged = play(fedavg.fedavg(toys.norm(), local, **settings), rounds=2)
    stepped = play(
        fedopt.fedopt(toys.norm(), local, server=optax.sgd(1.0), **settings), rounds=2)
    toys.assert_close(stepped, averaged)

  def test_the_server_rate_leaves_statistics_alone(self):
    settings = {'mapper': mappers.one_by_one()}
    local = training(toys.norm)
    averaged = play(fedavg.fedavg(toys.norm(), local, **settings), rounds=1)
    doubled = play(
        fedopt.fedopt(toys.norm(), local, server=optax.sgd(2.0), **settings), rounds=1)
    toys.assert_close(doubled['batch_stats'], averaged['batch_stats'])
    toys.assert_far(doubled['params'], averaged['params'])

  def test_weighs_as_told(self):
    variables = play(
        fedopt.fedopt(toys.linear(), training(toys.linear), server=optax.sgd(1.0),
                      mapper=mappers.one_by_one(),
                      weigh=lambda clients: (clients.id == toys.IDS[3]).astype('float32')),
        rounds=1)
    x, y = toys.tables(FEDERATION)[3]
    toys.assert_close(variables['params']['head'], fedavg_twin.client_update(
        toys.twin(toys.start(toys.linear)), x, y, fedavg_twin.full_batches(y, 3), lr=LR))


if __name__ == '__main__':
  absltest.main()
