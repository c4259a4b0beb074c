"""Statistics for a merged model against NumPy's means over batches."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import toys

from hmm_jax import tree
from hmm_jax.merging.batch_norm.recalibrate import recalibrate

IMAGES = toys.federation(shape=(4, 4, 1)).examples
VECTORS = toys.federation().examples
BATCHES = np.array([[0, 3, 5, 8], [8, 9, 2, 20], [31, 30, 7, 1]])


def varied(network):
  """Returns two models whose parameters and statistics all differ."""
  stacked = toys.jit(jax.vmap(network.init))(jax.random.split(toys.key(0)))
  noise = lambda x: np.random.default_rng(x.size).uniform(0.5, 1.5, x.shape).astype(np.float32)
  return tree.unstack(jax.tree.map(lambda x: x + noise(x), stacked))


def convolved(variables, x):
  """Returns what the network of images normalizes, in float64."""
  layer = jax.tree.map(np.asarray, variables['params']['trunk']['Conv_0'])
  windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x, np.float64)[..., 0], (3, 3),
                                                     axis=(1, 2))
  return np.einsum('bijhw,hwc->bijc', windows, layer['kernel'][:, :, 0]) + layer['bias']


def statistics(inputs):
  """Returns the mean over batches of their means and biased variances."""
  over = tuple(range(1, inputs.ndim - 1))
  return {'mean': inputs.mean(axis=over).mean(axis=0), 'var': inputs.var(axis=over).mean(axis=0)}


class CalibrateTest(parameterized.TestCase):

  def test_of_inputs_are_those_of_numpy(self):
    variables, _ = varied(toys.norm())
    got = toys.jit(recalibrate, static_argnums=0)(toys.norm(), variables, VECTORS, BATCHES)
    expected = statistics(np.asarray(VECTORS.x, np.float64)[BATCHES])
    toys.assert_close(got, {'params': variables['params'],
                            'batch_stats': {'trunk': {'BatchNorm_0': expected}}})

  def test_of_a_hidden_layer_are_those_of_numpy(self):
    variables, _ = varied(toys.cnn())
    got = toys.jit(recalibrate, static_argnums=0)(toys.cnn(), variables, IMAGES, BATCHES)
    inputs = np.stack([convolved(variables, IMAGES.x[own]) for own in BATCHES])
    toys.assert_close(got, {'params': variables['params'],
                            'batch_stats': {'trunk': {'BatchNorm_0': statistics(inputs)}}})

  def test_do_not_hang_on_those_before(self):
    calibrate = toys.jit(recalibrate, static_argnums=0)
    a, b = varied(toys.cnn())
    got = calibrate(toys.cnn(), {**a, 'batch_stats': b['batch_stats']}, IMAGES, BATCHES)
    toys.assert_close(got, calibrate(toys.cnn(), a, IMAGES, BATCHES), rtol=0, atol=0)
    toys.assert_far(got['batch_stats'], a['batch_stats'])

  def test_a_network_without_statistics_comes_back(self):
    variables = toys.start(toys.perceptron)
    got = recalibrate(toys.perceptron(), variables, VECTORS, BATCHES)
    self.assertIs(got, variables)

  def test_on_one_batch_a_mean_model_sees_what_training_would(self):
    network, own = toys.cnn(), BATCHES[:1]
    mean = tree.mix(np.full(2, 0.5, np.float32), tree.stack(varied(network)))
    got = toys.jit(recalibrate, static_argnums=0)(network, mean, IMAGES, own)
    x = IMAGES.x[own[0]]
    evaluated, _ = network.apply(got, x)
    trained, _ = network.apply(mean, x, train=True)
    before, _ = network.apply(mean, x)
    np.testing.assert_allclose(evaluated, trained, rtol=1e-4, atol=1e-5)
    self.assertGreater(np.abs(before - trained).max(), 0.01)


if __name__ == '__main__':
  absltest.main()
