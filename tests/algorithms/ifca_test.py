"""Tests of IFCA against its pseudo-code."""

from functools import cache

from absl.testing import absltest
import jax
import numpy as np
import optax
from reference import ifca as reference
from reference import rounds, toys

from hmm_jax import tree
from hmm_jax.algorithms import ifca
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.types import InputError

FEDERATION = rounds.FEDERATION


def make(models, network=toys.linear, local=None, **settings):
  local = local or local_training(
      losses.supervised(network()), optax.sgd(rounds.LR), batch=99, epochs=2)
  return ifca.ifca(network(), local, models=models, mapper=mappers.one_by_one(), **settings)


@cache
def played():
  """Returns (the algorithm, every state, metrics of each round); two of five take part."""
  algorithm = make(3, participation=2)
  start = toys.jit(algorithm.init)(toys.key(0), FEDERATION)
  return algorithm, *rounds.play(algorithm, 5, state=start)


class IFCATest(absltest.TestCase):

  def test_equals_the_pseudo_code(self):
    algorithm, states, metrics = played()
    models, cluster = reference.ifca(
        [toys.twin(model) for model in tree.unstack(states[0].models)], toys.tables(FEDERATION),
        cohorts=rounds.positions(metrics), epochs=2, lr=rounds.LR)
    self.assertGreater(len(set(cluster)), 1)
    self.assertEqual(states[-1].cluster.tolist(), cluster)
    for got, wanted in zip(tree.unstack(states[-1].models), models, strict=True):
      toys.assert_close(got['params']['head'], wanted, rtol=1e-4, atol=1e-5)
    views = algorithm.views(states[-1], FEDERATION)
    for got, m in zip(tree.unstack(views['clients']), cluster, strict=True):
      toys.assert_close(got['params']['head'], models[m], rtol=1e-4, atol=1e-5)
    toys.assert_close(algorithm.gauges(states[-1])['cluster'], np.array(cluster, np.float32))

  def test_clients_move_and_stay(self):
    # Else the test above would not see who chooses when.
    cluster = np.stack([state.cluster for state in played()[1]])
    self.assertTrue((cluster[1:] != cluster[:-1]).any())

  def test_everybody_chooses_among_different_models_before_the_first_round(self):
    state = played()[1][0]
    models = tree.unstack(state.models)
    for m in range(3):
      toys.assert_far(models[m], models[m - 1])
    models = [toys.twin(model) for model in models]
    self.assertEqual(state.cluster.tolist(),
                     [reference.best(models, x, y) for x, y in toys.tables(FEDERATION)])

  def test_one_model_is_fedavg(self):
    algorithm = make(1, toys.norm, rounds.training(toys.norm), participation=3)
    start = toys.jit(algorithm.init)(toys.key(0), FEDERATION)
    states, _ = rounds.play(algorithm, 2, state=start)
    toys.assert_close(tree.take(states[-1].models, 0), rounds.averaged()[0][-1].variables)

  def test_a_model_that_nobody_takes_stays(self):
    algorithm, (state, *_), _ = played()
    # Wrong about every row: its logits are those of the last model, turned round.
    worst = jax.tree.map(lambda x: -9 * x[2], state.models)
    state = state._replace(cluster=0 * state.cluster, models=jax.tree.map(
        lambda models, model: np.stack([models[0], model, models[2]]), state.models, worst))
    states, _ = rounds.play(algorithm, 2, state=state)
    self.assertNotIn(1, states[-1].cluster.tolist())
    toys.assert_close(tree.take(states[-1].models, 1), worst, atol=0)

  def test_refuses_no_model(self):
    with self.assertRaisesRegex(InputError, 'got models=0'):
      make(0)

  def test_every_model_is_sent_and_one_comes_back(self):
    size = tree.nbytes(jax.eval_shape(toys.linear().init, toys.key(0)))
    algorithm, _, metrics = played()
    self.assertEqual(algorithm.traffic, (size, size))
    self.assertEqual((metrics[0]['messages_up'], metrics[0]['messages_down']), (2, 6))


if __name__ == '__main__':
  absltest.main()
