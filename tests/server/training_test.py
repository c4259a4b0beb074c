"""The server's own training, and the gradient of its rows."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import rounds, softmax_regression, toys
from reference.fedavg import client_update, full_batches

from hmm_jax import tree
from hmm_jax.client import losses
from hmm_jax.client.local import local_training
from hmm_jax.client.sampling import central
from hmm_jax.server import objectives, training
from hmm_jax.types import Cohort

FEDERATION = toys.hybrid()
SERVER = FEDERATION.server
LOOP = {'batch': 4, 'steps': 7}


@cache
def gradient(batch):
  return toys.jit(training.server_gradient(objectives.labels(toys.linear()), batch=batch))


class ServerTrainingTest(absltest.TestCase):

  def test_trains_as_clients_do(self):
    objective = objectives.labels(toys.norm())
    local = local_training(objectives.training_loss(objective), optax.sgd(rounds.LR), **LOOP)
    train = toys.jit(training.server_training(objective, local))
    got, cohort, metrics = train(toys.start(toys.norm), (), SERVER, toys.key(1))
    plain = local_training(losses.supervised(toys.norm()), optax.sgd(rounds.LR), **LOOP)
    wanted, _, report = toys.jit(plain)(
        toys.start(toys.norm), SERVER.examples, central(SERVER), (), toys.key(1))
    toys.assert_close(got, wanted)
    self.assertEqual([leaf.shape for leaf in cohort], [(1,)] * 5)
    self.assertEqual((cohort.id[0], cohort.size[0], cohort.steps[0]), (-1, 13, 7))
    toys.assert_close(metrics['server/loss'], report.loss)
    self.assertEqual((metrics['server/gradients'], metrics['server/forwards']), (7, 0))
    self.assertEqual(metrics['server/gradients'].dtype, np.dtype('float32'))

  def test_every_row_counts(self):
    objective = objectives.labels(toys.linear())
    local = local_training(
        objectives.training_loss(objective), optax.sgd(rounds.LR), batch=99, epochs=1)
    got, *_ = toys.jit(training.server_training(objective, local))(
        toys.start(toys.linear), (), SERVER, toys.key(1))
    x, y = toys.central(FEDERATION)
    self.assertLen(y, 13)  # Those that are held out, too.
    toys.assert_close(toys.twin(got), client_update(
        toys.twin(toys.start(toys.linear)), x, y, full_batches(y, 1), lr=rounds.LR))

  def test_the_objective_gets_the_models_and_the_start(self):
    objective = objectives.labels(toys.linear())._replace(
        targets=lambda models, examples: examples._replace(y=models),
        context=lambda variables, examples: (variables, examples.y))

    def local(start, examples, client, extra, key):
      del key
      report = Cohort(client.id, jnp.float32(1), jnp.bool_(True), client.size, jnp.int32(5))
      return (start, examples, extra), (), report

    (start, examples, extra), cohort, metrics = training.server_training(objective, local)(
        'start', 'models', SERVER, toys.key(0))
    self.assertEqual((start, examples.y, extra), ('start', 'models', ('start', 'models')))
    self.assertEqual((cohort.steps.tolist(), metrics['server/gradients']), ([5], 5))


class ServerGradientTest(parameterized.TestCase):

  @parameterized.parameters(4, 99)
  def test_is_that_of_all_rows(self, batch):
    got, count = gradient(batch)(toys.start(toys.linear), SERVER, toys.key(0))
    wanted = softmax_regression.gradient(
        toys.twin(toys.start(toys.linear)), *toys.central(FEDERATION))
    toys.assert_close(got['head'], wanted, rtol=1e-4, atol=1e-6)
    self.assertEqual(count, -(-13 // batch))

  @pytest.mark.slow
  def test_of_a_fresh_head_is_at_the_models_own(self):
    objective = objectives.fresh_head(toys.perceptron(), 3, steps=5)
    start = toys.start(toys.perceptron)
    whole = training.server_gradient(objective, batch=5)

    def by_hand(start, server):
      head = objective.context(start, server.examples)
      return jax.grad(lambda params: objective.rows(
          {'params': params}, *server.examples, head)[0].mean())(start['params'])

    (got, _), wanted = toys.jit(lambda *given: (whole(*given), by_hand(*given[:2])))(
        start, SERVER, toys.key(0))
    toys.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    toys.assert_far(got, tree.zeros(got))


if __name__ == '__main__':
  absltest.main()
