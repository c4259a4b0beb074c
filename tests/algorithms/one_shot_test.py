"""One-shot merging: what is merged, when, and from which start."""

from functools import cache
import itertools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import optax
from reference import fedavg as averaging
from reference import rounds, toys

from hmm_jax import tree
from hmm_jax.algorithms.engines import one_shot
from hmm_jax.client import losses, sampling
from hmm_jax.client.local import local_training
from hmm_jax.types import InputError

FEDERATION = toys.federation()
K = len(toys.SIZES)


def training():
  # All rows at once: what a client learns does not hang on its key.
  return local_training(
      losses.supervised(toys.linear()), optax.sgd(rounds.LR), batch=32, epochs=2)


def mean(base, stacked, federation, key):
  """Averages by rows, and says how far the models are from their start."""
  far = tree.sub(stacked, jax.tree.map(lambda x: x[None], base))
  del key
  return tree.mix(sampling.by_size(federation.clients), stacked), {'far': tree.dot(far, far)}


def three_first(base, stacked, federation, key):
  """Takes from the start what no average would: three times the first client's update."""
  del federation, key
  return jax.tree.map(lambda x, start: start + 3 * (x[0] - start), stacked, base), {
      'far': jnp.float32(7)}


@cache
def made(merge=mean, every=0):
  return one_shot.one_shot(
      toys.linear(), training(), mapper=toys.lifts()['map'], merge=merge, every=every)


@cache
def played(algorithm, count):
  return rounds.play(algorithm, count, federation=FEDERATION)


def finished(algorithm, state):
  return rounds.compiled(algorithm.finish)(state, FEDERATION, toys.key(9))


def view(algorithm, state):
  return algorithm.views(state, FEDERATION)['global']


class OneShotTest(parameterized.TestCase):

  def test_a_mean_after_every_round_is_federated_averaging(self):
    algorithm = made(every=1)
    states, _ = played(algorithm, 3)
    wanted = toys.twin(states[0].base)
    for state in states[1:]:
      wanted = averaging.fedavg(
          wanted, toys.tables(FEDERATION), cohorts=[range(K)], epochs=2, lr=rounds.LR)
      toys.assert_close(toys.twin(view(algorithm, state)), wanted, rtol=1e-4, atol=1e-5)
      toys.assert_close(state.stacked, tree.repeat(state.base, K), rtol=0, atol=0)

  def test_without_merges_clients_train_alone(self):
    states, _ = played(made(three_first), 2)
    for before, after in itertools.pairwise(states):
      toys.assert_close(after.stacked, trained_on(before), rtol=1e-4, atol=1e-5)

  def test_merges_at_the_end_from_the_common_start(self):
    algorithm = made(three_first)
    states, metrics = played(algorithm, 2)
    self.assertEqual([r['messages_up'] for r in metrics], [0, 0])
    after, report = finished(algorithm, states[2])
    wanted, _ = three_first(states[0].base, states[2].stacked, FEDERATION, None)
    toys.assert_close(view(algorithm, after), wanted)
    toys.assert_close(after.stacked, states[2].stacked, rtol=0, atol=0)
    self.assertEqual((report['messages_up'], report['messages_down']), (K, 0))
    self.assertEqual(algorithm.gauges(states[2])['far'], 0)
    self.assertEqual(algorithm.gauges(after)['far'], 7)

  def test_before_a_merge_the_global_model_is_the_average(self):
    algorithm = made(three_first)
    for state in played(algorithm, 2)[0]:
      wanted, _ = mean(state.base, state.stacked, FEDERATION, None)
      toys.assert_close(view(algorithm, state), wanted)

  def test_merges_now_and_then_from_the_last_merge(self):
    algorithm = made(three_first, every=2)
    states, metrics = played(algorithm, 4)
    self.assertEqual([r['messages_up'] for r in metrics], [0, K, 0, K])
    self.assertEqual([r['messages_down'] for r in metrics], [0, K, 0, K])
    self.assertEqual([int(s.merged) for s in states], [0, 0, 2, 2, 4])
    toys.assert_close(states[2].stacked, tree.repeat(states[2].base, K), rtol=0, atol=0)
    wanted, _ = three_first(states[2].base, trained_on(states[3]), FEDERATION, None)
    toys.assert_close(states[4].base, wanted, rtol=1e-4, atol=1e-5)

  @parameterized.parameters((3, K, 3), (4, 0, 4))
  def test_the_end_merges_what_is_not_merged_yet(self, rounds, messages, merged):
    algorithm = made(three_first, every=2)
    before = played(algorithm, 4)[0][rounds]
    after, report = finished(algorithm, before)
    self.assertEqual((report['messages_up'], int(after.merged)), (messages, merged))
    if not messages:
      toys.assert_close(after, before, rtol=0, atol=0)

  def test_refuses_a_negative_interval(self):
    with self.assertRaisesRegex(InputError, 'got every=-1'):
      made(every=-1)


def trained_on(state):
  """Trains each client of a state for one more round, in NumPy."""
  return tree.stack([{'params': {'head': averaging.client_update(
      toys.twin(model), x, y, averaging.full_batches(y, 2), lr=rounds.LR)}}
                     for model, (x, y) in zip(
                         tree.unstack(state.stacked), toys.tables(FEDERATION), strict=True)])


if __name__ == '__main__':
  absltest.main()
