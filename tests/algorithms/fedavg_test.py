"""Tests of FedAvg against its pseudo-code, with a proximal term (FedProx) and without."""

from functools import cache, partial

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import fedavg as reference
from reference import rounds, softmax_regression, toys

from hmm_jax import tree
from hmm_jax.algorithms import fedavg
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.local import local_training

LR = rounds.LR
FEDERATION = rounds.FEDERATION


def make(network=toys.linear, *, loss=losses.supervised, epochs=3, **settings):
  local = local_training(loss(network()), optax.sgd(LR), batch=99, epochs=epochs)
  return fedavg.fedavg(network(), local, mapper=mappers.one_by_one(), **settings)


@cache
def program():
  """Returns a compiled round, whose first argument says whether clients count the same."""
  def round(same, *given):
    weigh = lambda clients: jnp.where(same, sampling.uniform(clients), sampling.by_size(clients))
    return make(participation=2, weigh=weigh).round(*given)

  return toys.jit(round)


class FedAvgTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('by_size', False, reference.size_weights), ('uniform', True, reference.equal_weights))
  def test_equals_the_pseudo_code(self, same, weights):
    states, metrics = rounds.play(make(), 5, program=partial(program(), same))
    cohorts = rounds.positions(metrics)
    self.assertIn(2, set().union(*cohorts))  # This client has no rows.
    self.assertGreater(len(set(map(frozenset, cohorts))), 1)
    expected = reference.fedavg(
        toys.twin(toys.start(toys.linear)), toys.tables(FEDERATION), cohorts=cohorts, epochs=3,
        lr=LR, weigh=weights)
    toys.assert_close(states[-1].variables['params']['head'], expected, rtol=1e-4, atol=1e-5)
    for measured, cohort in zip(metrics, cohorts, strict=True):
      self.assertEqual(measured['cohort'].steps.tolist(), [0 if k == 2 else 3 for k in cohort])
      self.assertEqual((measured['messages_up'], measured['messages_down']), (2, 2))

  @parameterized.named_parameters(('by_size', False), ('uniform', True))
  def test_a_cohort_without_rows_changes_nothing(self, same):
    nobody = FEDERATION._replace(
        clients=FEDERATION.clients._replace(size=np.zeros(5, np.int32)))
    (start, after), [metrics] = rounds.play(
        make(), 1, federation=nobody, program=partial(program(), same))
    toys.assert_close(after.variables, start.variables)
    self.assertEqual(metrics['train/loss'], 0)

  def test_statistics_are_averaged(self):
    federation = toys.federation((6, 3))
    (_, state), _ = rounds.play(make(toys.norm, epochs=1), 1, federation=federation)
    means, spreads = zip(*[(x.mean(axis=0), x.var(axis=0)) for x, _ in toys.tables(federation)],
                         strict=True)
    toys.assert_close(state.variables['batch_stats']['trunk']['BatchNorm_0'], {
        'mean': 0.1 * (2 * means[0] + means[1]) / 3,
        'var': 0.9 + 0.1 * (2 * spreads[0] + spreads[1]) / 3})

  def test_traffic_is_one_model(self):
    size = tree.nbytes(jax.eval_shape(toys.norm().init, toys.key(0)))
    self.assertEqual(make(toys.norm).traffic, (size, size))
    self.assertEqual(size, 4 * (4 * 3 + 3 + 2 * 4 + 2 * 4))

  def test_fedprox_equals_the_formula(self):
    states, _ = rounds.play(
        make(loss=lambda net: losses.proximal(losses.supervised(net), 0.7)), 2)
    expected, tables = toys.twin(toys.start(toys.linear)), toys.tables(FEDERATION)
    for _ in range(2):
      models = []
      for x, y in tables:
        model = expected
        for _ in range(3 if len(y) else 0):
          slope = softmax_regression.gradient(model, x, y)
          model = {n: model[n] - LR * (slope[n] + 0.7 * (model[n] - expected[n])) for n in model}
        models.append(model)
      expected = reference.average(models, reference.size_weights(tables))
    toys.assert_close(states[-1].variables['params']['head'], expected)


if __name__ == '__main__':
  absltest.main()
