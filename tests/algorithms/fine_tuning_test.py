"""Tests of fine-tuning a global model, by hand and from a config."""

from functools import cache

from absl.testing import absltest
import jax
import numpy as np
import optax
from reference import fedavg as reference
from reference import rounds, toys
from reference.configs import experiment, tiny

from hmm_jax import tree
from hmm_jax.algorithms import fedavg
from hmm_jax.algorithms.engines import fine_tuning
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training

FEDERATION = rounds.FEDERATION


def training(network, epochs, batch):
  return local_training(
      losses.supervised(network()), optax.sgd(rounds.LR), batch=batch, epochs=epochs)


@cache
def average(network=toys.linear):
  return fedavg.fedavg(
      network(), training(network, 2, 99), mapper=mappers.one_by_one(), participation=2)


@cache
def make(network=toys.linear, batch=99):
  """Returns FedAvg, fine-tuned by another training than its own."""
  return fine_tuning.fine_tuned(average(network), training(network, 3, batch),
                                mapper=mappers.one_by_one())


class FineTuningTest(absltest.TestCase):

  def test_every_client_trains_the_global_model_further(self):
    state = rounds.play(make(), 2)[0][-1]
    views = toys.jit(make().views)(state, FEDERATION)
    self.assertEqual(views.keys(), {'global', 'clients'})
    toys.assert_close(views['global'], state.variables, atol=0)
    for k, (x, y) in enumerate(toys.tables(FEDERATION)):
      wanted = reference.client_update(
          toys.twin(state.variables), x, y, reference.full_batches(y, 3), lr=rounds.LR)
      toys.assert_close(
          tree.take(views['clients'], k)['params']['head'], wanted, rtol=1e-4, atol=1e-5)

  def test_leaves_the_rest_of_the_algorithm_alone(self):
    self.assertEqual(make()._replace(views=None), average(toys.linear)._replace(views=None))

  def test_draws_follow_the_round_and_the_client_and_statistics_are_trained(self):
    algorithm = make(toys.norm, 2)
    [state], _ = rounds.play(algorithm, 0)
    views = toys.jit(algorithm.views)
    once, again = (views(state, FEDERATION)['clients'] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    later = views(state._replace(round=state.round + 1), FEDERATION)['clients']
    toys.assert_far(once, later)
    order = np.array([3, 0, 4, 1, 2])
    moved = FEDERATION._replace(clients=tree.take(FEDERATION.clients, order))
    toys.assert_close(views(state, moved)['clients'], tree.take(once, order))
    means = once['batch_stats']['trunk']['BatchNorm_0']['mean']
    self.assertEqual((np.abs(means) > 0).all(axis=1).tolist(), [True, True, False, True, True])


class ConfigTest(absltest.TestCase):

  def test_any_global_method_gets_clients_of_its_own(self):
    plain, tuned = (experiment(tiny(algorithm='fedopt', **{'fine_tune.epochs': epochs}))
                    for epochs in (0, 1))
    views = [jax.eval_shape(
        lambda key, f, e=e: e.algorithm.views(e.algorithm.init(key, f), f), jax.random.key(0),
        e.federation) for e in (plain, tuned)]
    self.assertEqual([sorted(v) for v in views], [['global'], ['clients', 'global']])
    self.assertEqual(tuned.criterion, 'clients/validation/accuracy')

  def test_its_rate_is_the_local_one_unless_told(self):
    tuned = experiment(tiny(algorithm='fedavg', **{
        'fine_tune.epochs': 1, 'local.batch': 999, 'local.lr': 0.3, 'mlp.hidden': ()}))
    state = tuned.algorithm.init(jax.random.key(0), tuned.federation)
    views = toys.jit(tuned.algorithm.views)(state, tuned.federation)
    # One full batch: one step at the local rate along the gradient at the global model.
    start, moved = (v['params']['head']['bias'] for v in (views['global'], views['clients']))
    rows = tuned.federation.clients.index[0][:int(tuned.federation.clients.size[0])]
    shares = np.bincount(np.asarray(tuned.federation.examples.y)[rows], minlength=10) / len(rows)
    step = (moved[0] - start) / 0.3
    # The bias's gradient is the mean probability less the share of each class.
    np.testing.assert_allclose((step - shares).sum(), -1, atol=1e-4)
    self.assertLess(np.max(step - shares), 0)


if __name__ == '__main__':
  absltest.main()
