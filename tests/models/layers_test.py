"""Initialization and normalization."""

from absl.testing import absltest, parameterized
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax.models import layers


class Conv(nn.Module):

  @nn.compact
  def __call__(self, x):
    return layers.conv(x, 40, window=5)


class Dense(nn.Module):

  @nn.compact
  def __call__(self, x):
    return layers.dense(x, 40)


class Normalize(nn.Module):
  norm: str

  @nn.compact
  def __call__(self, x):
    return layers.normalize(x, self.norm, train=True, mask=None)


class LayersTest(parameterized.TestCase):

  @parameterized.parameters((Conv, (1, 6, 6, 20), 500), (Dense, (1, 400), 400))
  def test_kernel_and_bias_are_uniform_as_in_pytorch(self, module, shape, fan_in):
    parameters, = module().init(jax.random.key(0), jnp.zeros(shape))['params'].values()
    bound = fan_in**-0.5
    for leaf in jax.tree.leaves(parameters):
      self.assertLess(jnp.abs(leaf).max(), bound)
      self.assertGreater(jnp.abs(leaf).max(), 0.9 * bound)
    np.testing.assert_allclose(parameters['kernel'].std(), bound / np.sqrt(3), rtol=0.05)

  @parameterized.parameters(
      ('batch', 8, (0, 1, 2), 8), ('layer', 8, (1, 2, 3), 1), ('group', 8, (1, 2, 3), 4),
      ('group', 128, (1, 2, 3), 32), ('none', 8, (), None))
  def test_normalizes_over(self, norm, channels, axes, count):
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 2, channels)).astype(np.float32)
    out, _ = jax.jit(Normalize(norm).init_with_output)(jax.random.key(0), x)
    if count is None:
      np.testing.assert_array_equal(out, x)
      return
    split = x.reshape(4, 3, 2, count, channels // count)
    axes = tuple(4 if axis == 3 else axis for axis in axes)
    mean, std = split.mean(axes, keepdims=True), split.std(axes, keepdims=True)
    np.testing.assert_allclose(out, ((split - mean) / std).reshape(x.shape), atol=1e-4)


if __name__ == '__main__':
  absltest.main()
