"""Tests of SCAFFOLD against its pseudo-code."""

from absl.testing import absltest, parameterized
import numpy as np
import optax
from reference import scaffold as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.algorithms import scaffold
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training

LR = 0.3
STEPS = 3
ROUNDS = 4


def make(network=toys.linear, **settings):
  local = local_training(
      losses.corrected(losses.cross_entropy(network())), optax.sgd(LR), batch=99, epochs=STEPS)
  return scaffold.scaffold(network(), local, lr=LR, mapper=mappers.one_by_one(), **settings)


def play(algorithm, federation, rounds=ROUNDS):
  """Returns (the last state, the positions of each round's cohort)."""
  state, cohorts = toys.jit(algorithm.init)(toys.key(0), federation), []
  program = toys.jit(algorithm.round)
  for r in range(rounds):
    state, metrics = program(state, federation, toys.key(r))
    cohorts.append([toys.IDS.index(i) for i in metrics['cohort'].id.tolist()])
  return state, cohorts


class ScaffoldTest(parameterized.TestCase):

  @parameterized.parameters(
      {'server_lr': 1.0, 'participation': 0}, {'server_lr': 0.6, 'participation': 2})
  def test_equals_the_pseudo_code(self, server_lr, participation):
    federation = toys.federation((6, 3, 0, 8, 1))
    state, cohorts = play(
        make(server_lr=server_lr, participation=participation), federation)
    self.assertLen(set().union(*cohorts), 5)
    x, c, c_i = reference.scaffold(
        toys.twin(toys.start(toys.linear)), toys.tables(federation), cohorts=cohorts, steps=STEPS,
        lr=LR, server_lr=server_lr)
    close = {'rtol': 1e-4, 'atol': 1e-5}
    toys.assert_close(state.variables['params']['head'], x, **close)
    toys.assert_close(state.control['head'], c, **close)
    for k, control in enumerate(c_i):
      toys.assert_close(tree.take(state.controls, k)['head'], control, **close)

  def test_minibatches_count_as_steps(self):
    # Without drift to correct, c_i is the mean of the local gradients: (x - y) / (S lr).
    local = local_training(
        losses.corrected(losses.cross_entropy(toys.linear())), optax.sgd(LR), batch=2, epochs=1)
    algorithm = scaffold.scaffold(
        toys.linear(), local, lr=LR, mapper=mappers.one_by_one())
    state, _ = play(algorithm, toys.federation((7,)), rounds=1)
    moved = tree.sub(toys.start(toys.linear)['params'], state.variables['params'])
    toys.assert_close(tree.take(state.controls, 0), tree.scale(1 / (4 * LR), moved))
    toys.assert_close(state.control, tree.take(state.controls, 0))

  def test_a_client_without_rows_keeps_its_control_variate(self):
    state, _ = play(make(), toys.federation((6, 3, 0, 8, 1)))
    norms = [tree.dot(c, c) for c in tree.unstack(state.controls)]
    self.assertEqual([float(norm) > 0 for norm in norms], [True, True, False, True, True])
    self.assertTrue(tree.all_finite(state))

  def test_statistics_are_averaged_and_never_corrected(self):
    federation = toys.federation((6, 3))
    state, _ = play(make(toys.norm, server_lr=2.0), federation, rounds=1)
    means = [x.mean(axis=0) for x, _ in toys.tables(federation)]
    # Three full batches move a running mean of 0 to 1 - .9^3 of the batch's.
    toys.assert_close(state.variables['batch_stats']['trunk']['BatchNorm_0']['mean'],
                      (1 - 0.9**3) * np.mean(means, axis=0))

  def test_traffic_is_a_model_and_a_control_variate(self):
    traffic = make(toys.norm).traffic
    start = toys.start(toys.norm)
    size = tree.nbytes(start) + tree.nbytes(start['params'])
    self.assertEqual((traffic.up, traffic.down), (size, size))


if __name__ == '__main__':
  absltest.main()
