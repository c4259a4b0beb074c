"""Tests of FedEM against its pseudo-code."""

from functools import cache

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import fedem as reference
from reference import rounds, softmax_regression, toys

from hmm_jax import tree
from hmm_jax.algorithms import fedem
from hmm_jax.client import mappers
from hmm_jax.types import Batch, InputError

LR = rounds.LR
FEDERATION = rounds.FEDERATION
CLOSE = {'rtol': 1e-4, 'atol': 1e-5}


def make(models, network=toys.linear, *, batch=99, epochs=3, optimizer=None, **settings):
  local = fedem.component_training(
      network(), optimizer or optax.sgd(LR), batch=batch, epochs=epochs)
  return fedem.fedem(network(), local, models=models, mapper=mappers.one_by_one(), **settings)


@cache
def played():
  """Returns (the algorithm, every state, metrics of each round) of three models."""
  algorithm = make(3, participation=2)
  return algorithm, *rounds.play(algorithm, 4)


@cache
def normalized():
  """Returns FedEM of two networks with BatchNorm."""
  return make(2, toys.norm, batch=2, epochs=2, optimizer=rounds.OPTIMIZER, participation=3)


def twins(models):
  return [toys.twin(model) for model in tree.unstack(models)]


class FedEMTest(absltest.TestCase):

  def test_equals_the_pseudo_code(self):
    algorithm, states, metrics = played()
    cohorts = rounds.positions(metrics)
    self.assertIn(2, set().union(*cohorts))  # This client has no rows.
    models, pi = reference.fedem(
        twins(states[0].models), toys.tables(FEDERATION), cohorts=cohorts, steps=3, lr=LR)
    for got, wanted in zip(twins(states[-1].models), models, strict=True):
      toys.assert_close(got, wanted, **CLOSE)
    toys.assert_close(states[-1].weight, np.stack(pi), **CLOSE)
    view = algorithm.views(states[-1], FEDERATION)['clients']
    self.assertIs(view.models, states[-1].models)
    self.assertIs(view.weights, states[-1].weight)
    self.assertIs(algorithm.gauges(states[-1])['weight'], states[-1].weight)

  def test_the_loss_is_the_posterior_mean(self):
    _, states, metrics = played()
    k = next(k for k in rounds.positions(metrics)[0] if k != 2)
    after = models = twins(states[0].models)
    x, y = toys.tables(FEDERATION)[k]
    q, expected = reference.posterior(np.full(3, 1 / 3), models, x, y), 0
    for _ in range(3):
      expected += sum((q[:, m] * softmax_regression.losses(after[m], x, y)).mean()
                      for m in range(3)) / 3
      after = [{n: theta[n] - LR * g[n] for n in theta} for theta, g in (
          (theta, reference.weighted_gradient(theta, x, y, q[:, m]))
          for m, theta in enumerate(after))]
    place = rounds.positions(metrics)[0].index(k)
    toys.assert_close(metrics[0]['cohort'].loss[place], expected, **CLOSE)

  def test_a_minibatch_repeats_the_posterior_of_the_start(self):
    # The models of the step differ from those that q is of.
    starts, models = (jax.vmap(toys.linear().init)(jax.random.split(toys.key(n), 2))
                      for n in range(2))
    x, y = toys.tables(FEDERATION)[3]
    mask = np.arange(8) < 6
    weight = jnp.array([0.3, 0.7])
    loss = toys.jit(jax.value_and_grad(fedem.surrogate(toys.linear()), has_aux=True))
    (value, (_, report)), gradient = loss(
        models['params'], {}, Batch(x.astype(np.float32), y, mask), starts, weight, None)
    q = reference.posterior(np.asarray(weight), twins(starts), x[:6], y[:6])
    by_hand = sum((q[:, m] * softmax_regression.losses(theta, x[:6], y[:6])).mean()
                  for m, theta in enumerate(twins(models)))
    toys.assert_close((value, report), (by_hand, by_hand))
    for m, theta in enumerate(twins(models)):
      toys.assert_close(tree.take(gradient, m)['head'],
                        reference.weighted_gradient(theta, x[:6], y[:6], q[:, m]))

  def test_the_posterior_of_models_in_evaluation_mode(self):
    # One model's running mean is off, which its batches would not show.
    algorithm = normalized()
    state = algorithm.init(toys.key(0), FEDERATION)
    mean = state.models['batch_stats']['trunk']['BatchNorm_0']['mean'].at[1].set(2.0)
    state.models['batch_stats']['trunk']['BatchNorm_0']['mean'] = mean
    (_, after), [metrics] = rounds.play(algorithm, 1, state=state)
    k = next(k for k in rounds.positions([metrics])[0] if k != 2)
    x, y = toys.tables(FEDERATION)[k]
    shifted = [x / np.sqrt(1 + 1e-5), (x - 2) / np.sqrt(1 + 1e-5)]
    first, second = (softmax_regression.losses(theta, inputs, y)
                     for theta, inputs in zip(twins(state.models), shifted, strict=True))
    share = (1 / (1 + np.exp(first - second))).mean()
    toys.assert_close(after.weight[k], np.array([share, 1 - share]))

  def test_a_model_of_all_weight_is_fedavg_and_weights_of_zero_stay_zero(self):
    start = normalized().init(toys.key(0), FEDERATION)
    states, metrics = rounds.play(normalized(), 2, state=start._replace(
        weight=jnp.tile(jnp.array([1.0, 0.0]), (5, 1))))
    expected, reports = rounds.averaged()
    toys.assert_close(tree.take(states[-1].models, 0), expected[-1].variables, **CLOSE)
    toys.assert_close(metrics, reports, **CLOSE)
    self.assertEqual(states[-1].weight.tolist(), [[1, 0]] * 5)
    self.assertTrue(tree.all_finite(states[-1]))

  def test_models_clip_by_themselves(self):
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    local = fedem.component_training(toys.linear(), clipped, batch=99)
    models = jax.vmap(toys.linear().init)(jax.random.split(toys.key(0), 3))
    trained, _, _ = toys.jit(local)(
        models, FEDERATION.examples, toys.one(FEDERATION, 3), jnp.full(3, 1 / 3), toys.key(0))
    moved = tree.sub(trained, models)
    toys.assert_close(jnp.sqrt(jax.vmap(tree.dot)(moved, moved)), np.full(3, 1e-3), rtol=1e-3)

  def test_weights_begin_equal_and_models_different(self):
    state = played()[1][0]
    toys.assert_close(state.weight, np.full((5, 3), 1 / 3))
    models = tree.unstack(state.models)
    for m in range(3):
      toys.assert_far(models[m], models[m - 1])

  def test_all_models_are_sent_both_ways(self):
    size = 3 * tree.nbytes(jax.eval_shape(toys.linear().init, toys.key(0)))
    algorithm, _, metrics = played()
    self.assertEqual(algorithm.traffic, (size, size))
    self.assertEqual((metrics[0]['messages_up'], metrics[0]['messages_down']), (2, 2))

  def test_refuses_no_model(self):
    with self.assertRaisesRegex(InputError, 'got models=0'):
      make(0)


if __name__ == '__main__':
  absltest.main()
