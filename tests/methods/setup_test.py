"""Optimizers are what the config says."""

from absl.testing import absltest, parameterized
from hmm_jax.methods import one_model, setup
import jax.numpy as jnp
import numpy as np
import optax
from reference.configs import tiny


class OptimizerTest(parameterized.TestCase):

  @parameterized.parameters(
      ('sgd', optax.sgd(0.01, momentum=0.9)), ('adam', optax.adam(0.01, b1=0.9, b2=0.99, eps=1e-3)),
      ('yogi', optax.yogi(0.01, b1=0.9, b2=0.99, eps=1e-3)),
      ('adagrad', optax.adagrad(0.01, eps=1e-3)),
      ('lion', optax.lion(0.01, b1=0.9, b2=0.99)))
  def test_server_optimizers_get_the_settings_they_take(self, name, expected):
    made = one_model.server_optimizer(setup.Setup(
        tiny(**{'fedopt.optimizer': name}), None, None, None))
    params, gradient = {'w': jnp.arange(3.0)}, {'w': jnp.array([1.0, -2.0, 0.5])}
    steps = []
    for optimizer in (made, expected):
      _, state = optimizer.update(gradient, optimizer.init(params), params)
      steps.append(optimizer.update(gradient, state, params)[0]['w'])  # Momentum shows now.
    np.testing.assert_array_equal(*steps)

  def test_clipping_and_decay_come_before_the_step(self):
    made = setup.client_optimizer(tiny(**{
        'local.clip': 1.0, 'local.weight_decay': 0.1, 'local.lr': 0.5}))
    params, gradient = {'w': jnp.array([2.0, 0.0])}, {'w': jnp.array([30.0, 40.0])}
    step, _ = made.update(gradient, made.init(params), params)
    np.testing.assert_allclose(step['w'], [-0.5 * (0.6 + 0.2), -0.5 * 0.8], rtol=1e-6)

  @parameterized.parameters(
      (0.0, [30.0, -40.0, 0.5]), (1.0, [1.0, -1.0, 0.5]), (35.0, [30.0, -35.0, 0.5]))
  def test_each_entry_may_be_clipped(self, limit, expected):
    made = setup.client_optimizer(tiny(**{'local.clip_value': limit, 'local.lr': 0.5}))
    params, gradient = {'w': jnp.ones(3)}, {'w': jnp.array([30.0, -40.0, 0.5])}
    step, _ = made.update(gradient, made.init(params), params)
    np.testing.assert_allclose(step['w'], -0.5 * np.array(expected), rtol=1e-6)

  def test_entries_are_clipped_after_the_norm_and_before_the_decay(self):
    made = setup.client_optimizer(tiny(**{
        'local.clip': 10.0, 'local.clip_value': 7.0, 'local.weight_decay': 1.0, 'local.lr': 0.5}))
    params, gradient = {'w': jnp.array([2.0, 0.0])}, {'w': jnp.array([30.0, 40.0])}
    step, _ = made.update(gradient, made.init(params), params)
    np.testing.assert_allclose(step['w'], [-0.5 * (6 + 2), -0.5 * 7], rtol=1e-6)

  def test_entries_are_clipped_before_adamw(self):
    made = setup.client_optimizer(tiny(**{'local.optimizer': 'adamw', 'local.clip_value': 1.0}))
    params = {'w': jnp.zeros(2)}
    steps = []
    for optimizer, second in ((made, 40.0), (optax.adamw(0.05, weight_decay=0.0), 1.0)):
      _, state = optimizer.update({'w': jnp.array([0.5, 0.5])}, optimizer.init(params), params)
      steps.append(optimizer.update({'w': jnp.array([second, 0.5])}, state, params)[0]['w'])
    np.testing.assert_allclose(*steps, rtol=1e-6)

  def test_adamw(self):
    made = setup.client_optimizer(tiny(**{'local.optimizer': 'adamw', 'local.weight_decay': 0.1}))
    expected = optax.adamw(0.05, weight_decay=0.1)
    params, gradient = {'w': jnp.arange(3.0)}, {'w': jnp.array([1.0, -2.0, 0.5])}
    steps = [o.update(gradient, o.init(params), params)[0] for o in (made, expected)]
    np.testing.assert_array_equal(steps[0]['w'], steps[1]['w'])

if __name__ == '__main__':
  absltest.main()
