"""Sizes, normalizations and the gradient."""

from unittest import mock

from absl.testing import absltest, parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.models import layers
from hmm_jax.models.classifier import classifier
from hmm_jax.models.resnet import Size, Trunk, resnet


def _gradient():
  trunk = Trunk(Size(widths=(4, 6), blocks=(1, 1)), 'batch')
  model = classifier(trunk, classes=3, input_shape=(5, 6, 3))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
      lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
      jax.eval_shape(model.init, jax.random.key(0)))
  x = jnp.asarray(rng.normal(size=(4, 5, 6, 3)), jnp.float32)

  def loss(params):
    return jnp.sum(model.apply({**variables, 'params': params}, x, train=True)[0]**2)

  return jax.jit(jax.grad(loss))(variables['params'])


class ResnetTest(parameterized.TestCase):

  @parameterized.parameters(('9-narrow', 100, 83_852), ('18', 10, 11_173_962), ('20', 10, 272_474))
  def test_parameters(self, size, classes, count):
    model = resnet(size, classes=classes, input_shape=(32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    self.assertEqual(tree.size(variables['params']), count)

  @parameterized.named_parameters((norm, norm) for norm in layers.NORMS)
  def test_normalization(self, norm):
    model = resnet(norm=norm, classes=10, input_shape=(1, 1, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    names = set(variables['params']['trunk']['Block_3'])
    self.assertEqual('batch_stats' in variables, norm == 'batch')
    self.assertEqual('BatchNorm_2' in names, norm == 'batch')
    self.assertEqual('GroupNorm_2' in names, norm in ('group', 'layer'))
    self.assertEqual('bias' in variables['params']['trunk']['Conv_0'], norm == 'none')

  def test_features_are_means_over_the_last_stage(self):
    model = resnet(classes=10, input_shape=(9, 9, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    features = jax.eval_shape(model.features, variables, jnp.zeros((2, 9, 9, 3)))
    self.assertEqual(features.shape, (2, 64))

  def test_gradient_equals_that_of_the_originals(self):
    ours = _gradient()
    with mock.patch.object(layers, 'convolution', lax.conv_general_dilated):
      theirs = _gradient()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


if __name__ == '__main__':
  absltest.main()
