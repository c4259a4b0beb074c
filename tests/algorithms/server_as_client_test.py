"""The server as one more client: exact weights, and its own rows."""

from functools import cache

from absl.testing import absltest
import jax
import numpy as np
import optax
from reference import rounds, softmax_regression, toys
from reference.fedavg import client_update, full_batches

from hmm_jax import tree
from hmm_jax.algorithms import server_as_client
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.server import objectives, training
from hmm_jax.types import Cohort

LR = rounds.LR
SIZES = (6, 3, 0, 8, 1)
FEDERATION = toys.hybrid(SIZES)
ROWS = 13


@cache
def make():
  objective = objectives.labels(toys.linear())
  loop = lambda epochs: {'batch': 99, 'epochs': epochs}
  server = training.server_training(objective, local_training(
      objectives.training_loss(objective), optax.sgd(LR), **loop(3)))
  local = local_training(losses.supervised(toys.linear()), optax.sgd(LR), **loop(2))
  return server_as_client.server_as_client(
      toys.linear(), local, server=server, mapper=mappers.one_by_one(), participation=2)


def constant(value):
  """Returns a client whose model is this number everywhere."""
  def local(start, examples, client, extra, key):
    del examples, key
    model = jax.tree.map(lambda x: 0 * x + value(client), start)
    return model, extra, Cohort(client.id, 1.0 * client.size, client.size >= 0, client.size,
                                client.size)
  return local


class ServerAsClientTest(absltest.TestCase):

  def test_equals_federated_averaging_with_one_more_client(self):
    states, metrics = rounds.play(make(), 3, federation=FEDERATION)
    clients = [*toys.tables(FEDERATION), toys.central(FEDERATION)]
    params = toys.twin(toys.start(toys.linear))
    for state, measured, drawn in zip(
        states[1:], metrics, rounds.positions(metrics), strict=True):
      cohort = [*drawn, 5]
      models = [client_update(params, x, y, full_batches(y, 3 if k == 5 else 2), lr=LR)
                for k, (x, y) in ((k, clients[k]) for k in cohort)]
      counts = [len(clients[k][1]) for k in cohort]
      self.assertEqual(counts[-1], ROWS)
      params = {name: sum(n / sum(counts) * m[name]
                          for n, m in zip(counts, models, strict=True)) for name in params}
      toys.assert_close(toys.twin(state.variables), params, rtol=1e-4, atol=1e-5)
      self.assertEqual((measured['server/gradients'], measured['server/forwards']), (3, 0))
      self.assertIn('server/loss', measured)
    self.assertEqual(states[-1].round, 3)

  def test_weighs_by_rows_exactly(self):
    # Each client's model is its number of rows, the server's is 100; statistics too.
    algorithm = server_as_client.server_as_client(
        toys.norm(), constant(lambda client: client.size), mapper=mappers.one_by_one(),
        server=training.server_training(
            objectives.labels(toys.norm()), constant(lambda client: 100)), participation=3)
    (_, state), [measured] = rounds.play(algorithm, 1, federation=FEDERATION)
    sizes = [SIZES[k] for k in rounds.positions([measured])[0]]
    wanted = (sum(n * n for n in sizes) + ROWS * 100) / (sum(sizes) + ROWS)
    for leaf in jax.tree.leaves(state.variables):
      np.testing.assert_allclose(leaf, wanted, rtol=1e-6)
    # The server is nobody of the cohort, and sends nothing.
    self.assertLen(sizes, 3)
    self.assertEqual((measured['messages_up'], measured['messages_down']), (3, 3))
    self.assertEqual(measured['train/loss'], sum(n * n for n in sizes) / sum(sizes))

  def test_alone_where_nobody_else_has_rows(self):
    nobody = FEDERATION._replace(clients=FEDERATION.clients._replace(size=np.zeros(5, np.int32)))
    (_, state), _ = rounds.play(make(), 1, federation=nobody)
    params = toys.twin(toys.start(toys.linear))
    x, y = toys.central(FEDERATION)
    for _ in range(3):
      slope = softmax_regression.gradient(params, x, y)
      params = {name: params[name] - LR * slope[name] for name in params}
    toys.assert_close(toys.twin(state.variables), params, rtol=1e-4, atol=1e-5)

  def test_traffic_is_a_model(self):
    size = tree.nbytes(jax.eval_shape(toys.linear().init, toys.key(0)))
    self.assertEqual(make().traffic, (size, size))

  def test_the_view_is_the_global_model(self):
    [state], _ = rounds.play(make(), 0, federation=FEDERATION)
    toys.assert_close(make().views(state, FEDERATION), {'global': toys.start(toys.linear)})


if __name__ == '__main__':
  absltest.main()
