"""PLeaS against NumPy's least squares, and the optimum that they are."""

from absl.testing import absltest
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from reference import perceptrons, planted, toys

from hmm_jax import tree
from hmm_jax.merging.pleas import fit_layers, pleas
from hmm_jax.models import layers
from hmm_jax.models.classifier import classifier
from hmm_jax.models.mlp import mlp
from hmm_jax.types import Examples

RNG = np.random.default_rng(0)
ROWS = RNG.permutation(30)[:28].reshape(4, 7)
VECTORS = Examples(np.float32(RNG.normal(size=(30, 4)) + 1), np.zeros(30, np.int32))
IMAGES = Examples(np.float32(RNG.normal(size=(30, 5, 5, 2))), np.zeros(30, np.int32))
fit = toys.jit(fit_layers, static_argnums=0)
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


class PleasTest(absltest.TestCase):

  def test_of_inputs_that_are_nothing_the_mean_is_left(self):
    stacked = stack(CONVOLUTIONS, 2)
    dark = Examples(np.zeros_like(IMAGES.x), IMAGES.y)
    got = fit(CONVOLUTIONS, stacked, dark, ROWS, ridge=0.3)['params']['trunk']['Conv_0']
    toys.assert_close(got, tree.mix(np.float32([0.5, 0.5]), stacked['params']['trunk']['Conv_0']))

  def test_layers_are_those_of_the_twin(self):
    for network, examples, count, ridge in ((PERCEPTRON, VECTORS, 3, 1e-3),
                                            (CONVOLUTIONS, IMAGES, 2, 0.3)):
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
    got = fit(CONVOLUTIONS, stacked, IMAGES, ROWS, ridge=0.3)
    mean = tree.mix(np.float32([0.5, 0.5]), stacked)
    for pick in (lambda model: model['batch_stats'],
                 lambda model: model['params']['trunk']['BatchNorm_0']):
      toys.assert_close(pick(got), pick(mean), rtol=1e-6)

  def test_pleas_matches_by_weights_or_by_activations_before_it_fits(self):
    first, stacked = planted.models()
    toys.assert_far(tree.mean(stacked['params']), first['params'], least=0.1)
    own = jnp.stack([planted.INDICES, planted.INDICES + 1])  # Examples may be each model's own.
    for match, indices in (('weights', planted.INDICES), ('activations', own)):
      merge = planted.merge(pleas(match=match), indices)
      toys.assert_close(merge(stacked), first['params'], rtol=1e-3, atol=1e-4)
      if match == 'weights':  # Of models in one order it is no mean.
        noisy = planted.noisy(first)
        toys.assert_far(merge(noisy), tree.mean(noisy['params']), least=0.01)


if __name__ == '__main__':
  absltest.main()
