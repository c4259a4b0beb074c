"""Tests of Ditto against its pseudo-code."""

from functools import cache

from absl.testing import absltest
import jax
import numpy as np
import optax
from reference import ditto as reference
from reference import rounds, toys

from hmm_jax import tree
from hmm_jax.algorithms import ditto
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.local import local_training

FEDERATION = rounds.FEDERATION


def make(lam, network=toys.linear, optimizer=rounds.OPTIMIZER, *, personal_epochs=2, batch=2,
         **settings):
  loss = losses.supervised(network())
  pulled = losses.proximal(loss, lam, anchor=ditto.received)
  return ditto.ditto(
      network(), local_training(loss, optimizer, batch=batch, epochs=2),
      personal=local_training(pulled, optimizer, batch=batch, epochs=personal_epochs),
      mapper=mappers.one_by_one(), **settings)


@cache
def without_the_pull():
  return rounds.play(make(0.0, toys.norm, participation=3), 2)


class DittoTest(absltest.TestCase):

  def test_equals_the_pseudo_code(self):
    algorithm = make(0.7, optimizer=optax.sgd(rounds.LR), personal_epochs=3, batch=99,
                     participation=2)
    states, metrics = rounds.play(algorithm, 4)
    cohorts = rounds.positions(metrics)
    self.assertIn(2, set().union(*cohorts))  # This client has no rows.
    w, v = reference.ditto(
        toys.twin(toys.start(toys.linear)), toys.tables(FEDERATION), cohorts=cohorts, steps=2,
        personal_steps=3, lr=rounds.LR, lam=0.7)
    views = algorithm.views(states[-1], FEDERATION)
    toys.assert_close(views['global']['params']['head'], w, rtol=1e-4, atol=1e-5)
    for got, wanted in zip(tree.unstack(views['clients']), v, strict=True):
      toys.assert_close(got['params']['head'], wanted, rtol=1e-4, atol=1e-5)
    self.assertEqual((metrics[0]['messages_up'], metrics[0]['messages_down']), (2, 2))

  def test_the_global_path_is_fedavg(self):
    states, metrics = without_the_pull()
    expected, reports = rounds.averaged()
    toys.assert_close(states[-1].variables, expected[-1].variables)
    toys.assert_close(metrics, reports)

  def test_without_the_pull_the_clients_train_alone(self):
    # In the first round own models and the global one begin the same.
    states, metrics = without_the_pull()
    cohort = np.array(rounds.positions(metrics)[0])
    weights = sampling.by_size(tree.take(FEDERATION.clients, cohort))
    trained = tree.take(states[1].personal, cohort)
    toys.assert_far(*tree.unstack(trained)[:2])
    toys.assert_close(tree.mix(weights, trained), states[1].variables)

  def test_traffic_is_a_model_each_way(self):
    size = tree.nbytes(jax.eval_shape(toys.norm().init, toys.key(0)))
    self.assertEqual(make(0.7, toys.norm).traffic, (size, size))


if __name__ == '__main__':
  absltest.main()
