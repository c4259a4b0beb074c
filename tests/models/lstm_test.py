"""Values, gradients and training of the LSTM."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference.variables import drawn

from hmm_jax import tree
from hmm_jax.models.lstm import lstm
from hmm_jax.types import InputError

_SETTINGS = dict(vocabulary=7, classes=5, input_shape=(6,))


def _tokens(batch, seed=0):
  return np.random.default_rng(seed).integers(0, 7, (batch, 6)).astype(np.int32)


@functools.cache
def _made(hidden=(4, 3), dtype=jnp.float32):
  model = lstm(2, hidden, dtype=dtype, **_SETTINGS)
  return model, drawn(model)


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _forward(params, x):
  """The forward pass of one row in float64, gate by gate as in the textbooks."""
  trunk = jax.tree.map(np.float64, params['trunk'])
  sequence = [trunk['Embed_0']['embedding'][token] for token in x]
  for n in range(len(trunk) - 1):
    layer = trunk[f'LSTM_{n}']
    width = len(layer['recurrent'])
    c, h, states = np.zeros(width), np.zeros(width), []
    for now in sequence:
      sums = [now @ layer['kernel'][:, own] + h @ layer['recurrent'][:, own] + layer['bias'][own]
              for own in (slice(g * width, (g + 1) * width) for g in range(4))]
      i, f, g, o = _sigmoid(sums[0]), _sigmoid(sums[1]), np.tanh(sums[2]), _sigmoid(sums[3])
      c = f * c + i * g
      h = o * np.tanh(c)
      states.append(h)
    sequence = states
  return sequence


class LstmTest(parameterized.TestCase):

  @parameterized.parameters(((4,),), ((3, 5, 2),))
  def test_forward_pass(self, hidden):
    model, variables = _made(hidden)
    x = _tokens(5)
    states = np.array([_forward(variables['params'], row) for row in x])
    features = states[:, -1]
    np.testing.assert_allclose(jax.jit(model.features)(variables, x), features, atol=1e-5)
    head = variables['params']['head']
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x)[0],
                               features @ np.asarray(head['kernel']) + np.asarray(head['bias']),
                               atol=1e-5)
    each = lstm(2, hidden, at_each_position=True, **_SETTINGS)
    np.testing.assert_allclose(jax.jit(each.features)(variables, x), states, atol=1e-5)

  def test_parameters(self):
    model = lstm(vocabulary=80, classes=80, input_shape=(40,))
    count = 80 * 8 + 4 * 256 * (8 + 256 + 1) + 4 * 256 * (256 + 256 + 1) + 257 * 80
    self.assertEqual(tree.size(jax.eval_shape(model.init, jax.random.key(0))), count)

  def test_a_layer_is_one_group(self):
    model, variables = _made()
    self.assertEqual(set(jax.tree.leaves(model.groups(variables))),
                     {'trunk/Embed_0', 'trunk/LSTM_0', 'trunk/LSTM_1', 'head'})

  def test_initialized_as_in_pytorch(self):
    model = lstm(200, (100,), vocabulary=50, classes=5, input_shape=(6,))
    params = model.init(jax.random.key(0))['params']['trunk']
    for leaf in params['LSTM_0'].values():
      self.assertBetween(jnp.abs(leaf).max(), 0.09, 0.1)
    np.testing.assert_allclose(params['Embed_0']['embedding'].std(), 1, rtol=0.05)

  @parameterized.parameters('float32', 'bfloat16')
  def test_gradients_are_finite_and_reach_every_parameter(self, dtype):
    model, variables = _made(dtype=jnp.dtype(dtype))

    @jax.jit
    @jax.grad
    def gradient(params):
      logits, _ = model.apply({'params': params}, _tokens(8), train=True)
      return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(8) % 5).mean()

    for leaf in jax.tree.leaves(gradient(variables['params'])):
      self.assertTrue(np.isfinite(leaf).all())
      self.assertGreater(np.abs(leaf).max(), 0)

  def test_bfloat16_computes_in_bfloat16(self):
    (full, variables), (half, _) = _made(), _made(dtype=jnp.bfloat16)
    a, b = (jax.jit(model.features)(variables, _tokens(8)) for model in (full, half))
    np.testing.assert_allclose(a, b, atol=0.02)
    np.testing.assert_array_equal(b, b.astype(jnp.bfloat16).astype(jnp.float32))
    self.assertEqual(b.dtype, jnp.float32)

  def test_float_inputs_count_as_the_tokens_they_hold(self):
    model, variables = _made()
    features = jax.jit(model.features)
    np.testing.assert_array_equal(
        features(variables, _tokens(3).astype(np.float32)), features(variables, _tokens(3)))

  def test_learns_to_copy_the_first_token(self):
    model = lstm(4, (16,), vocabulary=5, classes=5, input_shape=(6,))
    params = drawn(model)['params']
    optimizer = optax.adam(0.02)
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
    self.assertGreater(losses[0], 1.5)  # ln 5 = 1.61
    self.assertLess(losses[-1], 0.2)

  def test_stacked_clients_equal_one_by_one(self):
    model, _ = _made((4,))
    stacked = drawn(model, count=3)
    x = _tokens(12).reshape(3, 4, 6)
    step = jax.grad(lambda variables, x: jnp.sum(model.apply(variables, x, train=True)[0]**2))
    together = jax.jit(jax.vmap(step))(stacked, x)
    alone = jax.jit(step)
    apart = tree.stack([alone(tree.take(stacked, k), x[k]) for k in range(3)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, apart)

  def test_rows_do_not_touch_each_other(self):
    model, variables = _made()
    features, x = jax.jit(model.features), _tokens(4)
    alone = np.concatenate([features(variables, row[None]) for row in x])
    np.testing.assert_allclose(features(variables, x), alone, atol=1e-6)

  @parameterized.parameters(
      ({'hidden': ()}, r'got hidden=\(\)'), ({'hidden': (8, 0)}, r'got hidden=\(8, 0\)'),
      ({'embedding': 0}, 'got embedding=0'),
      ({'input_shape': (6, 6, 1)}, r'got model=lstm with inputs of shape \(6, 6, 1\)'))
  def test_names_what_is_wrong(self, settings, message):
    with self.assertRaisesRegex(InputError, message):
      lstm(**{**_SETTINGS, **settings})


if __name__ == '__main__':
  absltest.main()
