"""RegMean against inverses and least squares."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import regmean as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.merging import regmean

IMAGES = toys.federation(shape=(4, 4, 1)).examples
ROWS = jnp.array([[0, 4, 9, 11], [3, 20, 30, 5], [7, 8, 1, 17], [2, 6, 10, 12]])
kernel = toys.jit(regmean.kernel)


def layer(count=3, rows=40, inputs=6, seed=0):
  """Returns kernels and inputs whose directions are unlike, all in float32."""
  rng = np.random.default_rng(seed)
  mix = rng.normal(size=(count, inputs, inputs))
  x = [np.maximum(rng.normal(size=(rows, inputs)) @ m, 0) for m in mix]
  return rng.normal(size=(count, inputs, 4)), x


def solve(kernels, inputs, factor):
  grams = [x.T @ x / len(x) for x in inputs]
  return kernel(jnp.float32(kernels), jnp.float32(np.stack(grams)), factor)


class KernelTest(parameterized.TestCase):

  @parameterized.parameters(0.0, 0.1, 0.9, 1.0)
  def test_equals_the_inverse(self, factor):
    kernels, inputs = layer()
    np.testing.assert_allclose(solve(kernels, inputs, factor),
                               reference.layer(kernels, inputs, factor), rtol=1e-3, atol=1e-4)

  def test_without_a_factor_is_least_squares(self):
    kernels, inputs = layer()
    wanted = reference.least_squares(kernels, inputs)
    np.testing.assert_allclose(solve(kernels, inputs, 1.0), wanted, rtol=1e-3, atol=1e-4)
    self.assertGreater(np.abs(wanted - solve(kernels, inputs, 0.9)).max(), 0.01)

  def test_what_no_input_reaches_is_averaged(self):
    kernels, inputs = layer()
    inputs = [np.concatenate([x, 0 * x[:, :2]], axis=1) for x in inputs]
    extended = np.concatenate([kernels, kernels[:, :2] + 1], axis=1)
    got = solve(extended, inputs, 1.0)
    np.testing.assert_allclose(got[:6], reference.layer(kernels, inputs=[x[:, :6] for x in inputs],
                                                        factor=1.0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got[6:], extended[:, 6:].mean(axis=0), rtol=1e-5)

  def test_fewer_rows_than_inputs(self):
    # All models' outputs can be met, and where they say nothing the mean stays.
    kernels, inputs = layer(rows=2, inputs=8)
    got = np.asarray(solve(kernels, inputs, 1.0), np.float64)
    for x, w in zip(inputs, kernels):
      np.testing.assert_allclose(x @ got, x @ w, atol=0.01)
    mean, seen = kernels.mean(axis=0), np.concatenate(inputs)
    unseen = np.linalg.svd(seen)[2][np.linalg.matrix_rank(seen):]
    self.assertLen(unseen, 2)
    np.testing.assert_allclose(unseen @ got, unseen @ mean, atol=0.05)
    self.assertGreater(np.abs(unseen @ mean).max(), 0.3)

  def test_many_inputs_of_one_row(self):
    # What rounding makes of such a matrix has negative eigenvalues.
    kernels, inputs = layer(count=2, rows=1, inputs=300)
    self.assertTrue(tree.all_finite(solve(kernels, inputs, 1.0)))

  def test_no_inputs_at_all(self):
    kernels, inputs = layer()
    np.testing.assert_allclose(solve(kernels, [0 * x for x in inputs], 0.9), kernels.mean(axis=0),
                               rtol=1e-5)


class MergeTest(parameterized.TestCase):
  """A convolution, BatchNorm and a linear head."""

  def test_every_model_sees_its_own_inputs(self):
    network, rng = toys.cnn(), np.random.default_rng(0)
    stacked = jax.tree.map(
        lambda x: jnp.float32(x[None] + rng.uniform(0.5, 1.5, (2, *x.shape))),
        toys.start(toys.cnn))
    rows = ROWS.reshape(2, 2, 4)
    got = regmean.regmean()(network, stacked, None, IMAGES, rows, toys.key(0))
    seen = toys.jit(jax.vmap(network.linear))(stacked, IMAGES.x[rows.reshape(2, -1)])

    def wanted(path, models):
      models = np.asarray(models, np.float64)
      *module, name = (step.key for step in path)
      if name != 'kernel':
        return models.mean(axis=0)
      inputs = np.asarray(seen['/'.join(module)].inputs, np.float64)
      flat = models.reshape(2, inputs.shape[-1], -1)
      return reference.layer(flat, inputs, 0.9).reshape(models.shape[1:])

    toys.assert_close(got, jax.tree.map_with_path(wanted, stacked['params']), rtol=1e-3, atol=1e-3)


if __name__ == '__main__':
  absltest.main()
