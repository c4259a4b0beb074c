"""Tests of FedDF against hand computations."""

from functools import cache

from absl.testing import absltest
import jax
import numpy as np
import optax
from reference import fedavg as averaging
from reference import rounds, softmax_regression, toys

from hmm_jax import tree
from hmm_jax.algorithms import feddf
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.server import objectives, training

LR = rounds.LR
EPOCHS = 2
STEPS = 5
RATES = 0.4 * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS)) / 2
SIZES = (6, 3, 0, 8, 1)
FEDERATION = toys.hybrid(SIZES)


@cache
def make(network=toys.linear, server=None):
  objective = objectives.distill(network())
  # A rate that falls to 0 over a round's steps shows that every round begins anew.
  optimizer = optax.sgd(optax.cosine_decay_schedule(0.4, STEPS))
  server = server or training.server_training(objective, local_training(
      objectives.training_loss(objective), optimizer, batch=99, epochs=STEPS))
  local = local_training(
      losses.supervised(network()), optax.sgd(LR), batch=99, epochs=EPOCHS)
  return feddf.feddf(network(), local, server=server, mapper=mappers.one_by_one(),
                     participation=3)


def play(federation=FEDERATION, count=3):
  return rounds.play(make(), count, federation=federation)


def softmax(logits):
  z = np.exp(logits - logits.max(axis=1, keepdims=True))
  return z / z.sum(axis=1, keepdims=True)


class FedDFTest(absltest.TestCase):

  def test_equals_the_steps(self):
    states, metrics = play()
    x, _ = toys.central(FEDERATION)
    clients = toys.tables(FEDERATION)
    params = toys.twin(toys.start(toys.linear))
    for state, measured, cohort in zip(
        states[1:], metrics, rounds.positions(metrics), strict=True):
      models = [averaging.client_update(
          params, *clients[k], averaging.full_batches(clients[k][1], EPOCHS), lr=LR)
                for k in cohort]
      # All count the same in the teacher, and by their rows in the mean.
      teacher = softmax(np.mean([softmax_regression.logits(m, x) for m in models], axis=0))
      total = sum(SIZES[k] for k in cohort)
      params = {name: sum(SIZES[k] / total * m[name] for k, m in zip(cohort, models, strict=True))
                for name in params}
      seen = []
      for rate in RATES:
        p = softmax_regression.probabilities(params, x)
        seen.append((teacher * np.log(teacher / p)).sum(axis=1).mean())
        errors = (p - teacher) / len(x)
        params = {'kernel': params['kernel'] - rate * x.T @ errors,
                  'bias': params['bias'] - rate * errors.sum(axis=0)}
      toys.assert_close(toys.twin(state.variables), params, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(measured['server/loss'], np.mean(seen), rtol=1e-3, atol=1e-6)
      self.assertGreater(seen[0], 1e-3)
    self.assertEqual(states[-1].round, 3)

  def test_models_that_agree_have_nothing_to_teach(self):
    # Every client holds the same rows.
    same = FEDERATION._replace(clients=toys.clients([np.arange(8)] * 5))
    states, metrics = play(same)
    wanted = averaging.fedavg(
        toys.twin(toys.start(toys.linear)), toys.tables(same), cohorts=[[0]] * 3, epochs=EPOCHS,
        lr=LR)
    toys.assert_close(toys.twin(states[-1].variables), wanted, rtol=1e-4, atol=1e-5)
    for measured in metrics:
      np.testing.assert_allclose(measured['server/loss'], 0, atol=1e-6)

  def test_the_servers_labels_are_unread(self):
    examples = FEDERATION.server.examples
    unlabeled = FEDERATION._replace(server=FEDERATION.server._replace(
        examples=examples._replace(y=examples.y * 0 + 12345)))
    (states, _), (others, _) = (play(f) for f in (FEDERATION, unlabeled))
    toys.assert_close(others[-1], states[-1], rtol=0, atol=0)

  def test_models_and_mean_carry_their_statistics(self):
    seen = []

    def server(variables, models, server, key):
      del server, key
      seen.append((variables, models))
      return variables, None, training.spent(gradients=0)

    algorithm = make(toys.norm, server)
    state, metrics, (mean, models) = toys.jit(lambda *given: (*algorithm.round(*given), seen[0]))(
        algorithm.init(toys.key(0), FEDERATION), FEDERATION, toys.key(1))
    toys.assert_close(state.variables, mean, rtol=0, atol=0)
    [cohort] = rounds.positions([metrics])
    sizes = np.float32([SIZES[k] for k in cohort])
    toys.assert_close(mean, tree.mix(sizes / sizes.sum(), models), rtol=1e-5)
    for place, k in enumerate(cohort):
      x, y = toys.tables(FEDERATION)[k]
      wanted = (1 - 0.9**EPOCHS) * x.mean(axis=0) if len(y) else np.zeros(4)
      np.testing.assert_allclose(
          models['batch_stats']['trunk']['BatchNorm_0']['mean'][place], wanted, rtol=1e-4,
          atol=1e-6)

  def test_traffic_messages_and_costs(self):
    size = tree.nbytes(jax.eval_shape(toys.linear().init, toys.key(0)))
    self.assertEqual(make().traffic, (size, size))
    for measured in play()[1]:
      self.assertEqual((measured['messages_up'], measured['messages_down']), (3, 3))
      self.assertEqual((measured['server/gradients'], measured['server/forwards']), (STEPS, 0))

  def test_the_view_is_the_global_model(self):
    [state], _ = play(count=0)
    toys.assert_close(make().views(state, FEDERATION), {'global': toys.start(toys.linear)})


if __name__ == '__main__':
  absltest.main()
