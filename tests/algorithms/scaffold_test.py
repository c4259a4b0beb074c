"""Tests of SCAFFOLD against its pseudo-code."""

from absl.testing import absltest
import jax
import numpy as np
import optax
from reference import rounds, toys
from reference import scaffold as reference

from hmm_jax import tree
from hmm_jax.algorithms import scaffold
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.local import local_training

LR = rounds.LR
STEPS = 3


def make(network=toys.linear, *, batch=99, epochs=STEPS, **settings):
  local = local_training(
      losses.corrected(losses.supervised(network())), optax.sgd(LR), batch=batch, epochs=epochs)
  return scaffold.scaffold(network(), local, lr=LR, mapper=mappers.one_by_one(), **settings)


class ScaffoldTest(absltest.TestCase):

  def test_equals_the_pseudo_code(self):
    states, metrics = rounds.play(make(server_lr=0.6, participation=2), 4)
    cohorts = rounds.positions(metrics)
    self.assertLen(set().union(*cohorts), 5)  # One client has no rows.
    x, c, c_i = reference.scaffold(
        toys.twin(toys.start(toys.linear)), toys.tables(rounds.FEDERATION), cohorts=cohorts,
        steps=STEPS, lr=LR, server_lr=0.6)
    close = {'rtol': 1e-4, 'atol': 1e-5}
    toys.assert_close(states[-1].variables['params']['head'], x, **close)
    toys.assert_close(states[-1].control['head'], c, **close)
    for k, control in enumerate(c_i):
      toys.assert_close(tree.take(states[-1].controls, k)['head'], control, **close)

  def test_minibatches_count_and_statistics_are_averaged_and_never_corrected(self):
    (start, state), [metrics] = rounds.play(
        make(toys.norm, batch=2, epochs=2, server_lr=2.0, participation=3), 1)
    # Without drift to correct, c_i is the mean of the local gradients: (x - y_i) / (S_i lr).
    steps = metrics['cohort'].steps
    self.assertGreater(len(set(steps.tolist())), 1)
    [cohort] = rounds.positions([metrics])
    taken = tree.take(state.controls, np.array(cohort))
    moved = tree.mix(2.0 / 3 * LR * steps, taken)
    toys.assert_close(tree.sub(start.variables['params'], state.variables['params']), moved)
    # How rows are normalized before the head does not hang on what is learned.
    expected, _ = rounds.averaged(weigh=sampling.uniform)
    toys.assert_close(state.variables['batch_stats'], expected[1].variables['batch_stats'])

  def test_traffic_is_a_model_and_a_control_variate(self):
    start = jax.eval_shape(toys.norm().init, toys.key(0))
    size = tree.nbytes(start) + tree.nbytes(start['params'])
    self.assertEqual(make(toys.norm).traffic, (size, size))


if __name__ == '__main__':
  absltest.main()
