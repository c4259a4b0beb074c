"""Sizes, the smallest images and the gradient."""

from unittest import mock

from absl.testing import absltest, parameterized
import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.models import cnn as module
from hmm_jax.models import layers
from hmm_jax.models.cnn import SIZES, cnn
from hmm_jax.types import InputError


def _gradient(size, shape):
  model = cnn(size, classes=4, input_shape=shape)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype),
      jax.eval_shape(model.init, jax.random.key(0))['params'])
  x = jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32)
  return jax.jit(jax.grad(lambda params: jnp.sum(model.apply({'params': params}, x)[0]**2)))(params)


class CnnTest(parameterized.TestCase):

  @parameterized.parameters(
      ('lenet', (32, 32, 3), 62_006), ('pfllib', (32, 32, 3), 878_538),
      ('pfllib', (28, 28, 1), 582_026), ('small', (32, 32, 3), 545_098),
      ('pfl', (32, 32, 3), 1_626_442))
  def test_parameters(self, size, shape, count):
    model = cnn(size, classes=10, input_shape=shape)
    self.assertEqual(tree.size(jax.eval_shape(model.init, jax.random.key(0))), count)

  @parameterized.named_parameters((size, size) for size in SIZES)
  def test_smallest_image(self, size):
    least = SIZES[size].least
    model = cnn(size, classes=10, input_shape=(least, least, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    self.assertGreater(variables['params']['trunk']['Dense_0']['kernel'].size, 0)
    with self.assertRaisesRegex(InputError, f'{size} with images of {least}x{least - 1}'):
      cnn(size, classes=10, input_shape=(least, least - 1, 1))

  def test_gradient_equals_that_of_the_originals(self):
    ours = _gradient('lenet', (16, 18, 3))
    pool = lambda x: nn.max_pool(x, (2, 2), (2, 2))
    with (mock.patch.object(layers, 'convolution', lax.conv_general_dilated),
          mock.patch.object(module, 'max_pool', pool)):
      theirs = _gradient('lenet', (16, 18, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


if __name__ == '__main__':
  absltest.main()
