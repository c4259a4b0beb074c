"""Outputs against a NumPy twin, causality, and what is refused."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import attention
from reference.variables import drawn

from hmm_jax import tree
from hmm_jax.models import NETWORKS
from hmm_jax.models.gpt import gpt
from hmm_jax.registry import Inputs
from hmm_jax.types import InputError

SETTINGS = dict(width=8, heads=2, vocabulary=7, classes=5, input_shape=(6,))


def tokens(batch, seed=0):
  return np.random.default_rng(seed).integers(0, 7, (batch, 6)).astype(np.int32)


@functools.cache
def made(at_each_position, dtype='float32', positions=0):
  model = gpt(2, at_each_position=at_each_position, dtype=jnp.dtype(dtype), positions=positions,
              **SETTINGS)
  return model, drawn(model)


def twin(params, row):
  """Returns the features of one row at each position in float64."""
  trunk = jax.tree.map(np.float64, params['trunk'])
  return attention.stream(trunk, trunk['tokens']['embedding'][row], heads=2, causal=True)


class GptTest(parameterized.TestCase):

  @parameterized.parameters(0, 9)
  def test_forward_pass(self, positions):
    (one, variables), (each, _) = (made(at_each, positions=positions) for at_each in (False, True))
    params, x = variables['params'], tokens(5)
    self.assertLen(params['trunk']['positions']['embedding'], positions or 6)
    features = np.stack([twin(params, row) for row in x])
    logits = attention.affine(jax.tree.map(np.float64, params['head']), features)
    np.testing.assert_allclose(jax.jit(each.features)(variables, x), features, atol=1e-5)
    np.testing.assert_allclose(jax.jit(each.apply)(variables, x)[0], logits, atol=1e-5)
    np.testing.assert_allclose(jax.jit(each.head)(variables, np.float32(features)), logits,
                               atol=1e-5)
    np.testing.assert_allclose(jax.jit(one.features)(variables, x), features[:, -1], atol=1e-5)
    np.testing.assert_allclose(jax.jit(one.apply)(variables, x)[0], logits[:, -1], atol=1e-5)

  def test_no_output_depends_on_later_tokens(self):
    model, variables = made(True)
    apply, x = jax.jit(model.apply), tokens(3)
    logits = np.asarray(apply(variables, x)[0])
    for t in range(5):
      other = x.copy()
      other[:, t + 1:] = (other[:, t + 1:] + 1) % 7
      changed = np.asarray(apply(variables, other)[0])
      np.testing.assert_array_equal(changed[:, :t + 1], logits[:, :t + 1])
      self.assertTrue((changed[:, t + 1:] != logits[:, t + 1:]).any(axis=(0, 2)).all())

  @parameterized.parameters('lstm', 'gpt')
  def test_only_the_inputs_say_whether_positions_are_outputs(self, name):
    network = NETWORKS[name]
    settings = {key: setting.default for key, setting in network.settings.items()}
    for positions, shape in ((False, (2, 5)), (True, (2, 6, 5))):
      inputs = Inputs((6,), 5, jnp.dtype('float32'), vocabulary=7, positions=positions)
      model = network.build(inputs, type('Settings', (), settings))
      logits = jax.eval_shape(lambda v, x, m=model: m.apply(v, x)[0], model.shapes, tokens(2))
      self.assertEqual((logits.shape, logits.dtype), (shape, jnp.float32))
      self.assertEqual(jax.eval_shape(model.linear, model.shapes, tokens(2))['head'].outputs.shape,
                       (2 * 6 if positions else 2, 5))

  def test_parameters(self):
    model = gpt(vocabulary=80, classes=70, input_shape=(40,))
    block = 12 * 128**2 + (4 + 4 + 1 + 2 + 2) * 128  # matrices, biases, two normalizations
    self.assertEqual(tree.size(model.shapes),
                     (80 + 40) * 128 + 4 * block + 2 * 128 + 129 * 70)

  @parameterized.product(dtype=('float32', 'bfloat16'), at_each_position=(False, True))
  def test_gradients_are_finite_and_reach_every_parameter(self, dtype, at_each_position):
    model, variables = made(at_each_position, dtype)
    loss = lambda params: jnp.sum(model.apply({'params': params}, tokens(8), train=True)[0]**2)
    for path, leaf in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(variables['params'])):
      self.assertTrue(np.isfinite(leaf).all())
      if path[-2].key == 'key' and path[-1].key == 'bias':
        continue  # It adds the same to all scores of a query.
      self.assertGreater(np.abs(leaf).max(), 0, path)

  def test_a_batch_that_is_masked_has_finite_outputs(self):
    model, variables = made(True)
    logits = jax.jit(model.apply)(variables, tokens(3), train=True, mask=np.zeros(3, bool))[0]
    self.assertTrue(np.isfinite(logits).all())

  def test_learns_to_copy_the_first_token(self):
    model, _ = made(False)
    params, optimizer = model.init(jax.random.key(0))['params'], optax.adam(0.01)
    x = np.random.default_rng(0).integers(0, 5, (64, 6)).astype(np.int32)

    def loss(params):
      logits, _ = model.apply({'params': params}, x, train=True)
      return optax.softmax_cross_entropy_with_integer_labels(logits, x[:, 0]).mean()

    def step(carry, _):
      params, state = carry
      value, gradient = jax.value_and_grad(loss)(params)
      updates, state = optimizer.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), value

    train = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=150))
    losses = train(params)[1]
    self.assertGreater(losses[0], 1.4)  # ln 5 = 1.61
    self.assertLess(losses[-1], 0.2)

  @parameterized.parameters(
      ({'width': 9}, 'got width=9, heads=2; expected a width that is a multiple of the heads'),
      ({'positions': 5}, 'got positions=5 with examples of 6 tokens; expected 0, or at least 6'),
      ({'input_shape': (6, 6, 1)}, r'got model=gpt with inputs of shape \(6, 6, 1\)'))
  def test_names_what_is_wrong(self, settings, message):
    with self.assertRaisesRegex(InputError, message):
      gpt(**{**SETTINGS, **settings})


if __name__ == '__main__':
  absltest.main()
