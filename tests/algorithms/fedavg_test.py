"""Tests of FedAvg against its pseudo-code."""

from absl.testing import absltest, parameterized
import numpy as np
import optax
from reference import fedavg as reference
from reference import softmax_regression, toys

from hmm_jax import tree
from hmm_jax.algorithms import fedavg
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.local import local_training

LR = 0.3
ROUNDS = 2


def make(network=toys.linear, *, epochs=3, batch=99, **settings):
  local = local_training(
      losses.cross_entropy(network()), optax.sgd(LR), batch=batch, epochs=epochs)
  return fedavg.fedavg(network(), local, mapper=mappers.one_by_one(), **settings)


def play(algorithm, federation, rounds=ROUNDS):
  """Returns (the global model after all rounds, metrics of each)."""
  state, metrics = toys.jit(algorithm.init)(toys.key(0), federation), []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, report = program(state, federation, toys.key(r))
    metrics.append(report)
  return algorithm.views(state, federation)['global'], metrics


def start():
  return toys.twin(toys.start(toys.linear))


class FedAvgTest(parameterized.TestCase):

  @parameterized.parameters(
      (sampling.by_size, reference.size_weights),
      (sampling.uniform, reference.equal_weights))
  def test_equals_the_pseudo_code(self, weigh, weights):
    federation = toys.federation((6, 3, 0, 8, 1))
    variables, metrics = play(make(weigh=weigh), federation)
    expected = reference.fedavg(
        start(), toys.tables(federation), cohorts=[range(5)] * ROUNDS, epochs=3, lr=LR,
        weigh=weights)
    toys.assert_close(variables['params']['head'], expected)
    self.assertEqual(metrics[0]['cohort'].steps.tolist(), [3, 3, 0, 3, 3])

  def test_averages_those_who_take_part(self):
    federation = toys.federation()
    variables, metrics = play(make(participation=2), federation, rounds=4)
    ids = [metric['cohort'].id.tolist() for metric in metrics]
    cohorts = [[toys.IDS.index(i) for i in cohort] for cohort in ids]
    self.assertGreater(len(set(map(frozenset, cohorts))), 1)
    expected = reference.fedavg(
        start(), toys.tables(federation), cohorts=cohorts, epochs=3, lr=LR)
    toys.assert_close(variables['params']['head'], expected)
    self.assertEqual(metrics[0]['messages_up'], 2)

  def test_one_client_is_plain_sgd(self):
    federation = toys.federation((7,))
    variables, _ = play(make(), federation)
    x, y = toys.tables(federation)[0]
    expected = start()
    for _ in range(3 * ROUNDS):
      slope = softmax_regression.gradient(expected, x, y)
      expected = {name: expected[name] - LR * slope[name] for name in expected}
    toys.assert_close(variables['params']['head'], expected)

  def test_one_full_batch_step_is_a_centralized_gradient_step(self):
    federation = toys.federation()
    variables, _ = play(make(epochs=1), federation, rounds=1)
    tables = toys.tables(federation)
    x, y = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    slope = softmax_regression.gradient(start(), x, y)
    expected = {name: value - LR * slope[name] for name, value in start().items()}
    toys.assert_close(variables['params']['head'], expected)

  def test_statistics_are_averaged(self):
    federation = toys.federation((6, 3))
    variables, _ = play(make(toys.norm, epochs=1), federation, rounds=1)
    means, spreads = zip(*[(x.mean(axis=0), x.var(axis=0)) for x, _ in toys.tables(federation)],
                         strict=True)
    toys.assert_close(variables['batch_stats']['trunk']['BatchNorm_0'], {
        'mean': 0.1 * (2 * means[0] + means[1]) / 3,
        'var': 0.9 + 0.1 * (2 * spreads[0] + spreads[1]) / 3})

  @parameterized.parameters(sampling.by_size, sampling.uniform)
  def test_a_cohort_without_rows_changes_nothing(self, weigh):
    variables, metrics = play(make(weigh=weigh), toys.federation((0, 0)), rounds=1)
    toys.assert_close(variables, toys.start(toys.linear))
    self.assertEqual(metrics[0]['train/loss'], 0)

  def test_traffic_is_one_model(self):
    traffic = make(toys.norm).traffic
    size = tree.nbytes(toys.start(toys.norm))
    self.assertEqual((traffic.up, traffic.down), (size, size))
    self.assertEqual(size, 4 * (4 * 3 + 3 + 2 * 4 + 2 * 4))

  def test_fedprox_equals_the_formula(self):
    federation = toys.federation()
    loss = losses.proximal(losses.cross_entropy(toys.linear()), 0.7)
    local = local_training(loss, optax.sgd(LR), batch=99, epochs=3)
    variables, _ = play(
        fedavg.fedavg(toys.linear(), local, mapper=mappers.one_by_one()), federation)
    expected = start()
    for _ in range(ROUNDS):
      models = []
      for x, y in toys.tables(federation):
        model = expected
        for _ in range(3):
          slope = softmax_regression.gradient(model, x, y)
          model = {n: model[n] - LR * (slope[n] + 0.7 * (model[n] - expected[n])) for n in model}
        models.append(model)
      expected = reference.average(models, reference.size_weights(toys.tables(federation)))
    toys.assert_close(variables['params']['head'], expected)


if __name__ == '__main__':
  absltest.main()
