"""Tests of FedDF against hand computations."""

from absl.testing import absltest, parameterized
import numpy as np
import optax
from reference import softmax_regression, toys
from reference.fedavg import client_update, full_batches

from hmm_jax import tree
from hmm_jax.algorithms import fedavg, feddf
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.server import guided_search, objectives

LR = 0.3
EPOCHS = 2
SERVER_LR = 0.4
STEPS = 5
SIZES = (6, 3, 0, 8, 1)
FEDERATION = toys.hybrid(SIZES)


def training(network=toys.linear):
  return local_training(losses.cross_entropy(network()), optax.sgd(LR), batch=99, epochs=EPOCHS)


def make(network=toys.linear, *, participation=0, local=None, optimizer=None, **batches):
  surrogate = objectives.distil(network())
  server = guided_search.server_training(surrogate, local_training(
      objectives.training_loss(surrogate), optimizer or optax.sgd(SERVER_LR),
      **batches or {'batch': 99, 'epochs': STEPS}))
  return feddf.feddf(network(), local or training(network), server=server,
                     mapper=mappers.one_by_one(), participation=participation)


def play(algorithm, federation=FEDERATION, rounds=3):
  states, metrics = [toys.jit(algorithm.init)(toys.key(0), federation)], []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, measured = program(states[-1], federation, toys.key(r))
    states.append(state)
    metrics.append(measured)
  return states, metrics


def softmax(logits):
  z = np.exp(logits - logits.max(axis=1, keepdims=True))
  return z / z.sum(axis=1, keepdims=True)


def unlabeled(federation):
  examples = federation.server.examples
  return federation._replace(server=federation.server._replace(
      examples=examples._replace(y=examples.y * 0 + 12345)))


class FedDFTest(parameterized.TestCase):

  @parameterized.parameters(0, 3)
  def test_equals_the_steps(self, participation):
    states, metrics = play(make(participation=participation))
    x, _ = toys.central(FEDERATION)
    clients = toys.tables(FEDERATION)
    params = toys.twin(toys.start(toys.linear))
    for state, measured in zip(states[1:], metrics, strict=True):
      cohort = [toys.IDS.index(i) for i in measured['cohort'].id.tolist()]
      models = [client_update(params, *clients[k], full_batches(clients[k][1], EPOCHS), lr=LR)
                for k in cohort]
      # All count the same in the teacher, and by their rows in the mean.
      teacher = softmax(np.mean([softmax_regression.logits(m, x) for m in models], axis=0))
      total = sum(SIZES[k] for k in cohort)
      params = {name: sum(SIZES[k] / total * m[name] for k, m in zip(cohort, models, strict=True))
                for name in params}
      seen = []
      for _ in range(STEPS):
        p = softmax_regression.probabilities(params, x)
        seen.append((teacher * np.log(teacher / p)).sum(axis=1).mean())
        errors = (p - teacher) / len(x)
        params = {'kernel': params['kernel'] - SERVER_LR * x.T @ errors,
                  'bias': params['bias'] - SERVER_LR * errors.sum(axis=0)}
      toys.assert_close(toys.twin(state.variables), params, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(measured['server/loss'], np.mean(seen), rtol=1e-3, atol=1e-6)
      self.assertGreater(seen[0], 1e-3)
    self.assertEqual(states[-1].round, 3)

  def test_models_that_agree_have_nothing_to_teach(self):
    # Every client holds the same rows.
    same = FEDERATION._replace(clients=toys.clients([np.arange(8)] * 3))
    states, metrics = play(make(), same)
    plain, _ = play(fedavg.fedavg(toys.linear(), training(), mapper=mappers.one_by_one()), same)
    toys.assert_close(states[-1].variables, plain[-1].variables, rtol=1e-4, atol=1e-5)
    for measured in metrics:
      np.testing.assert_allclose(measured['server/loss'], 0, atol=1e-6)

  def test_the_servers_labels_are_unread(self):
    (states, _), (others, _) = (
        play(make(toys.perceptron), f) for f in (FEDERATION, unlabeled(FEDERATION)))
    toys.assert_close(others[-1], states[-1], rtol=0, atol=0)
    plain, _ = play(fedavg.fedavg(
        toys.perceptron(), training(toys.perceptron), mapper=mappers.one_by_one()))
    toys.assert_far(states[-1].variables, plain[-1].variables, least=0.01)

  def test_models_and_mean_carry_their_statistics(self):
    seen = []

    def server(variables, models, server, key):
      del server, key
      seen.append((variables, models))
      return variables, None, guided_search.spent(gradients=0)

    algorithm = feddf.feddf(toys.norm(), training(toys.norm), server=server,
                            mapper=mappers.one_by_one())
    state, (mean, models) = toys.jit(lambda *given: (algorithm.round(*given)[0], seen[0]))(
        toys.jit(algorithm.init)(toys.key(0), FEDERATION), FEDERATION, toys.key(1))
    toys.assert_close(state.variables, mean, rtol=0, atol=0)
    toys.assert_close(mean, tree.mix(np.float32(SIZES) / sum(SIZES), models), rtol=1e-5)
    for k, (x, y) in enumerate(toys.tables(FEDERATION)):
      wanted = (1 - 0.9**EPOCHS) * x.mean(axis=0) if len(y) else np.zeros(4)
      np.testing.assert_allclose(
          models['batch_stats']['trunk']['BatchNorm_0']['mean'][k], wanted, rtol=1e-4, atol=1e-6)

  def test_traffic_messages_and_costs(self):
    algorithm = make(toys.norm, participation=2, batch=4, steps=7)
    size = tree.nbytes(toys.start(toys.norm))
    self.assertEqual((algorithm.traffic.up, algorithm.traffic.down), (size, size))
    _, metrics = play(algorithm, rounds=2)
    for measured in metrics:
      self.assertEqual((measured['messages_up'], measured['messages_down']), (2, 2))
      self.assertEqual((measured['server/gradients'], measured['server/forwards']), (7, 0))

  def test_the_servers_optimizer_begins_anew_every_round(self):
    rate = optax.cosine_decay_schedule(0.5, 4)
    optimizer = optax.sgd(rate)
    states, _ = play(make(optimizer=optimizer, batch=99, steps=4))
    constant, _ = play(make(optimizer=optax.sgd(1e-9), batch=99, steps=4), rounds=1)
    # Every round's server moves the mean: a rate that went on would be 0 in the second round.
    start = constant[0]._replace(variables=states[1].variables)
    program = toys.jit(make(optimizer=optax.sgd(1e-9), batch=99, steps=4).round)
    mean, _ = program(start, FEDERATION, toys.key(1))
    toys.assert_far(states[2].variables, mean.variables, least=0.01)

  def test_the_view_is_the_global_model(self):
    algorithm = make()
    [state], _ = play(algorithm, rounds=0)
    toys.assert_close(algorithm.views(state, FEDERATION), {'global': toys.start(toys.linear)})


if __name__ == '__main__':
  absltest.main()
