"""What methods are built from: optimizers, and the objective on the server's rows."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import toys
from reference.configs import tiny

from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers
from hmm_jax.client.optimizers import named_optimizer
from hmm_jax.types import InputError

FEDERATION = toys.hybrid()


def parts(federation=FEDERATION, **values):
  return Parts(tiny(**values), toys.norm(), mappers.one_by_one(), federation)


def steps(optimizer, *gradients, start=(2.0, 0.0)):
  """Returns the last of the steps that an optimizer makes of these gradients."""
  params = {'w': jnp.array(start)}
  state = optimizer.init(params)
  for gradient in gradients:
    step, state = optimizer.update({'w': jnp.array(gradient)}, state, params)
  return step['w']


class OptimizerTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('plain', {}, [-0.5 * 30, -0.5 * 40]),
      ('clip', {'clip': 1.0}, [-0.5 * 0.6, -0.5 * 0.8]),
      ('clip_value', {'clip_value': 35.0}, [-0.5 * 30, -0.5 * 35]),
      # Entries are clipped after the norm, and before the decay.
      ('all', {'clip': 10.0, 'clip_value': 7.0, 'weight_decay': 1.0},
       [-0.5 * (6 + 2), -0.5 * 7]))
  def test_clips_and_decays_before_the_step(self, settings, expected):
    made = parts(**{'local.lr': 0.5, **{f'local.{key}': v for key, v in settings.items()}})
    np.testing.assert_allclose(steps(made.optimizer(), [30.0, 40.0]), expected, rtol=1e-6)

  def test_momentum(self):
    made = parts(**{'local.lr': 0.5, 'local.momentum': 0.8}).optimizer()
    np.testing.assert_allclose(
        steps(made, [1.0, 2.0], [10.0, 20.0]), [-0.5 * 10.8, -0.5 * 21.6], rtol=1e-6)

  def test_clips_before_adamw_and_decays_beside_it(self):
    made = parts(**{'local.optimizer': 'adamw', 'local.clip_value': 1.0,
                    'local.weight_decay': 0.1, 'local.lr': 0.5}).optimizer()
    m, v = 0.1 * 0.9 * 0.5 + 0.1 * 1, 0.001 * 0.999 * 0.25 + 0.001 * 1
    wanted = m / (1 - 0.9**2) / np.sqrt(v / (1 - 0.999**2))
    np.testing.assert_allclose(
        steps(made, [0.5, 0.5], [40.0, 1.0]), [-0.5 * (wanted + 0.2), -0.5 * wanted], rtol=1e-4)

  @parameterized.parameters(
      ('lbfgs', 'more than gradients'), ('noisy_sgd', 'random numbers'))
  @pytest.mark.filterwarnings('ignore::UserWarning')
  def test_an_optimizer_of_more_than_gradients_is_refused(self, name, why):
    with self.assertRaisesRegex(InputError, f'got key={name}, which .*{why}'):
      named_optimizer('key', name, {'learning_rate': 0.1})

  @parameterized.parameters(
      'scale_by_adam', 'polyak_sgd', 'clip', 'apply_updates', 'contrib', '__name__')
  def test_what_is_no_optimizer_is_refused(self, name):
    with self.assertRaisesRegex(InputError, f'got key={name}; expected an optax optimizer'):
      named_optimizer('key', name, {'learning_rate': 0.1})

  def test_a_named_optimizer_gets_the_settings_it_takes(self):
    settings = {'learning_rate': 0.1, 'b1': 0.7, 'eps': 1e-3, 'momentum': 0.9}
    for name, wanted in (('adam', optax.adam(0.1, b1=0.7, eps=1e-3)),
                         ('sgd', optax.sgd(0.1, momentum=0.9))):
      got = named_optimizer('key', name, settings)
      np.testing.assert_array_equal(*(
          steps(optimizer, [1.0, -2.0], [0.5, 3.0]) for optimizer in (got, wanted)))

  def test_refuses_an_unknown_name(self):
    with self.assertRaisesRegex(InputError, 'got key=addam.*did you mean adam'):
      named_optimizer('key', 'addam', {'learning_rate': 0.1})


class ObjectiveTest(absltest.TestCase):

  def test_labels_are_the_networks_classes_and_a_head_has_the_servers(self):
    server = FEDERATION.server
    far = FEDERATION._replace(server=server._replace(
        examples=server.examples._replace(y=server.examples.y + 4)))
    with self.assertRaisesRegex(InputError, 'got server.surrogate=labels with server labels up to '
                                            '6; expected labels below 3'):
      parts(far).objective()
    parts().objective()
    for name in ('entropy', 'distil'):
      parts(far, **{'server.surrogate': name}).objective()
    objective = parts(far, **{'server.surrogate': 'head'}).objective()
    head = jax.eval_shape(objective.context, toys.norm().shapes, far.server.examples)
    self.assertEqual(head['kernel'].shape, (4, 7))


if __name__ == '__main__':
  absltest.main()
