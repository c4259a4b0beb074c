"""Sizes and values."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference.variables import drawn

from hmm_jax import tree
from hmm_jax.models.mlp import mlp


class MlpTest(parameterized.TestCase):

  @parameterized.parameters(((200,), 159_010), ((), 7_850), ((200, 200), 199_210))
  def test_parameters(self, hidden, count):
    model = mlp(hidden, classes=10, input_shape=(28, 28, 1))
    self.assertEqual(tree.size(jax.eval_shape(model.init, jax.random.key(0))), count)

  def test_one_hidden_layer(self):
    model = mlp((4,), classes=2, input_shape=(2, 3))
    variables = drawn(model)
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    hidden, head = variables['params']['trunk']['Dense_0'], variables['params']['head']
    h = np.maximum(x.reshape(5, 6) @ np.asarray(hidden['kernel']) + np.asarray(hidden['bias']), 0)
    logits, _ = model.apply(variables, jnp.asarray(x))
    expected = h @ np.asarray(head['kernel']) + np.asarray(head['bias'])
    np.testing.assert_allclose(logits, expected, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
