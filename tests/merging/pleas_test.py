"""PLeaS against NumPy's least squares, and the optimum that they are."""

from absl.testing import absltest, parameterized
import flax.linen as nn
import jax
import numpy as np
from reference import perceptrons, toys

from hmm_jax import tree
from hmm_jax.merging.pleas import pleas
from hmm_jax.models import layers
from hmm_jax.models.classifier import classifier
from hmm_jax.models.mlp import mlp
from hmm_jax.types import Examples

RNG = np.random.default_rng(0)
ROWS = RNG.permutation(30)[:28].reshape(4, 7)
VECTORS = Examples(np.float32(RNG.normal(size=(30, 4)) + 1), np.zeros(30, np.int32))
IMAGES = Examples(np.float32(RNG.normal(size=(30, 5, 5, 2))), np.zeros(30, np.int32))
fit = toys.jit(pleas, static_argnums=0)
see = toys.jit(lambda network, variables, x: network.linear(variables, x), static_argnums=0)


class Trunk(nn.Module):
  """A convolution without a bias, BatchNorm, and a convolution with one."""

  @nn.compact
  def __call__(self, x, *, train, mask):
    x = layers.conv(x, 4, window=3, bias=False)
    x = nn.relu(layers.normalize(x, 'batch', train=train, mask=mask))
    return nn.relu(layers.conv(x, 5, window=2)).mean((1, 2))


PERCEPTRON = mlp((6, 5), classes=3, input_shape=(4,))
CONVOLUTIONS = classifier(Trunk(), classes=3, input_shape=(5, 5, 2))


def stack(network, count):
  """Returns models that are all different."""
  rng = np.random.default_rng(0)
  draw = lambda x: np.float32(rng.uniform(-1, 1, (count, *x.shape)))
  made = jax.tree.map(draw, jax.eval_shape(network.init, toys.key(0)))
  return {name: value if name == 'params' else jax.tree.map(abs, value)
          for name, value in made.items()}


def matrices(variables):
  """Returns the kernel of each linear layer as a matrix, its bias the last row."""
  params, found = variables['params'], {}
  for path, layer in [('head', params['head']), *params['trunk'].items()]:
    if 'kernel' in layer:
      parts = [np.float64(layer[name]) for name in ('kernel', 'bias') if name in layer]
      found[path if path == 'head' else f'trunk/{path}'] = np.concatenate(
          [part.reshape(-1, part.shape[-1]) for part in parts])
  return found


class PleasTest(parameterized.TestCase):

  def test_of_inputs_that_are_nothing_the_mean_is_left(self):
    stacked = stack(CONVOLUTIONS, 2)
    dark = Examples(np.zeros_like(IMAGES.x), IMAGES.y)
    got = fit(CONVOLUTIONS, stacked, dark, ROWS, ridge=1e-2)['params']['trunk']['Conv_0']
    toys.assert_close(got, tree.mix(np.float32([0.5, 0.5]), stacked['params']['trunk']['Conv_0']))

  @parameterized.parameters(1e-3, 0.3)
  def test_layers_are_those_of_the_twin(self, ridge):
    for network, examples, count in ((PERCEPTRON, VECTORS, 3), (CONVOLUTIONS, IMAGES, 2)):
      stacked = stack(network, count)
      models, mean = tree.unstack(stacked), matrices(jax.tree.map(lambda x: x.mean(0), stacked))
      got = matrices(fit(network, stacked, examples, ROWS, ridge=ridge))
      seen = [see(network, model, examples.x[ROWS.ravel()]) for model in models]
      self.assertLen(got, 3)
      for path, own in got.items():
        x, y = (np.mean([layers[path][i] for layers in seen], axis=0, dtype=np.float64)
                for i in range(2))
        if len(own) > x.shape[1]:
          x = np.column_stack([x, np.ones(len(x))])
        np.testing.assert_allclose(
            own, perceptrons.ridge_regression(x, y, mean[path], ridge), atol=1e-3)

  def test_everything_else_is_averaged(self):
    stacked = stack(CONVOLUTIONS, 2)
    got = fit(CONVOLUTIONS, stacked, IMAGES, ROWS, ridge=1e-2)
    mean = tree.mix(np.float32([0.5, 0.5]), stacked)
    for pick in (lambda model: model['batch_stats'],
                 lambda model: model['params']['trunk']['BatchNorm_0']):
      toys.assert_close(pick(got), pick(mean), rtol=1e-6)

  def test_equal_models_come_back(self):
    stacked = tree.repeat(tree.take(stack(CONVOLUTIONS, 1), 0), 2)
    got = fit(CONVOLUTIONS, stacked, IMAGES, ROWS, ridge=1e-3)
    toys.assert_close(got, tree.take(stacked, 0), atol=1e-5)


if __name__ == '__main__':
  absltest.main()
