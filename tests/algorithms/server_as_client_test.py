"""The server as one more client: exact weights, and its own rows."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax
from reference import softmax_regression, toys
from reference.fedavg import client_update, full_batches

from hmm_jax import tree
from hmm_jax.algorithms import fedavg, server_as_client
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.server import guided_search, objectives
from hmm_jax.types import Cohort

LR = 0.3
SIZES = (6, 3, 0, 8, 1)
FEDERATION = toys.hybrid(SIZES)
ROWS = 13


def training(network=toys.linear):
  return local_training(losses.cross_entropy(network()), optax.sgd(LR), batch=99, epochs=2)


def own_training(network=toys.linear, **batches):
  surrogate = objectives.labels(network())
  return guided_search.server_training(surrogate, local_training(
      objectives.training_loss(surrogate), optax.sgd(LR), **batches or {'batch': 99, 'epochs': 3}))


def make(network=toys.linear, *, local=None, server=None, participation=0):
  return server_as_client.server_as_client(
      network(), local or training(network), server=server or own_training(network),
      mapper=mappers.one_by_one(), participation=participation)


def play(algorithm, federation=FEDERATION, rounds=3):
  states, metrics = [toys.jit(algorithm.init)(toys.key(0), federation)], []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, measured = program(states[-1], federation, toys.key(r))
    states.append(state)
    metrics.append(measured)
  return states, metrics


def constant(value):
  """Returns a client whose model is this number everywhere."""
  def local(start, examples, client, extra, key):
    del examples, key
    model = jax.tree.map(lambda x: 0 * x + value(client), start)
    return model, extra, Cohort(client.id, 1.0 * client.size, client.size >= 0, client.size,
                                client.size)
  return local


class ServerAsClientTest(parameterized.TestCase):

  @parameterized.parameters(0, 2)
  def test_equals_federated_averaging_with_one_more_client(self, participation):
    states, metrics = play(make(participation=participation))
    clients = [*toys.tables(FEDERATION), toys.central(FEDERATION)]
    params = toys.twin(toys.start(toys.linear))
    for state, measured in zip(states[1:], metrics, strict=True):
      cohort = [*(toys.IDS.index(i) for i in measured['cohort'].id.tolist()), 5]
      models = [client_update(params, x, y, full_batches(y, 3 if k == 5 else 2), lr=LR)
                for k, (x, y) in ((k, clients[k]) for k in cohort)]
      counts = [len(clients[k][1]) for k in cohort]
      self.assertEqual(counts[-1], ROWS)
      params = {name: sum(n / sum(counts) * m[name]
                          for n, m in zip(counts, models, strict=True)) for name in params}
      toys.assert_close(toys.twin(state.variables), params, rtol=1e-4, atol=1e-5)
    self.assertEqual(states[-1].round, 3)

  @parameterized.parameters(0, 3)
  def test_weighs_by_rows_exactly(self, participation):
    # Each client's model is its number of rows, the server's is 100.
    local = constant(lambda client: client.size)
    server = guided_search.server_training(
        objectives.labels(toys.linear()), constant(lambda client: 100))
    [_, state], [measured] = play(
        make(local=local, server=server, participation=participation), rounds=1)
    sizes = [SIZES[toys.IDS.index(i)] for i in measured['cohort'].id.tolist()]
    wanted = (sum(n * n for n in sizes) + ROWS * 100) / (sum(sizes) + ROWS)
    for leaf in jax.tree.leaves(state.variables):
      np.testing.assert_allclose(leaf, wanted, rtol=1e-6)
    # The server is nobody of the cohort, and sends nothing.
    self.assertLen(sizes, participation or 5)
    self.assertEqual((measured['messages_up'], measured['messages_down']), (len(sizes),) * 2)
    self.assertEqual(measured['train/loss'], sum(n * n for n in sizes) / sum(sizes))

  def test_alone_where_nobody_else_has_rows(self):
    nobody = FEDERATION._replace(clients=FEDERATION.clients._replace(size=np.zeros(5, np.int32)))
    [_, state], _ = play(make(), nobody, rounds=1)
    params = toys.twin(toys.start(toys.linear))
    x, y = toys.central(FEDERATION)
    for _ in range(3):
      slope = softmax_regression.gradient(params, x, y)
      params = {name: params[name] - LR * slope[name] for name in params}
    toys.assert_close(toys.twin(state.variables), params, rtol=1e-4, atol=1e-5)

  def test_statistics_are_averaged_as_all_else(self):
    [_, state], _ = play(make(toys.norm), rounds=1)
    tables = [*toys.tables(FEDERATION), toys.central(FEDERATION)]
    total = sum(len(y) for _, y in tables)
    wanted = sum(len(y) / total * (1 - 0.9**(3 if k == 5 else 2)) * x.mean(axis=0)
                 for k, (x, y) in enumerate(tables) if len(y))
    np.testing.assert_allclose(
        state.variables['batch_stats']['trunk']['BatchNorm_0']['mean'], wanted, rtol=1e-4)

  def test_it_is_not_federated_averaging(self):
    states, _ = play(make())
    plain, _ = play(fedavg.fedavg(toys.linear(), training(), mapper=mappers.one_by_one()))
    toys.assert_far(states[-1].variables, plain[-1].variables, least=0.01)

  def test_traffic_and_costs(self):
    algorithm = make(toys.norm, server=own_training(toys.norm, batch=4, steps=7), participation=2)
    size = tree.nbytes(toys.start(toys.norm))
    self.assertEqual((algorithm.traffic.up, algorithm.traffic.down), (size, size))
    _, [metrics] = play(algorithm, rounds=1)
    self.assertEqual((metrics['server/gradients'], metrics['server/forwards']), (7, 0))
    self.assertIn('server/loss', metrics)

  def test_the_view_is_the_global_model(self):
    algorithm = make()
    [state], _ = play(algorithm, rounds=0)
    toys.assert_close(algorithm.views(state, FEDERATION), {'global': toys.start(toys.linear)})


if __name__ == '__main__':
  absltest.main()
