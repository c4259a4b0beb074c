from absl.testing import absltest, parameterized
import jax
import numpy as np

from hmm_jax.data import normalize

rng = np.random.default_rng(0)
ROWS = np.array([5, 1, 7, 30, 999, 2, 600])
INPUTS = {
    'images': rng.integers(0, 256, (1000, 4, 5, 3), dtype=np.uint8),
    'vectors': rng.normal([0, 1000, -3], [1e-3, 1, 50], (1000, 3)).astype(np.float32),
    'series': rng.normal(3, 2, (1000, 6, 2)).astype(np.float32),
}


class ConstantsTest(parameterized.TestCase):

  @parameterized.product(kind=tuple(INPUTS), chunk=(1, 3, 256))
  def test_mean_and_deviation_of_the_training_rows(self, kind, chunk):
    x = INPUTS[kind]
    with absltest.mock.patch.object(normalize, '_CHUNK', chunk):
      mean, std = normalize.constants('mine', x, ROWS)
    wanted = x[ROWS].astype(np.float64).reshape(-1, x.shape[-1]) / (255 if kind == 'images' else 1)
    self.assertEqual((mean.dtype, std.dtype), (np.float32, np.float32))
    np.testing.assert_allclose(mean, wanted.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, wanted.std(axis=0), rtol=1e-6)

  @parameterized.parameters(
      ('mnist', 1, 0.1307, 0.3081), ('fashion_mnist', 1, 0.2860, 0.3530),
      ('cifar10', 3, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
      ('cifar100', 3, [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]))
  def test_published(self, name, channels, mean, std):
    x = np.zeros((2, 4, 4, channels), np.uint8)
    found = normalize.constants(name, x, np.arange(2))
    np.testing.assert_allclose(found, [np.full(channels, mean), np.full(channels, std)], rtol=1e-6)

  def test_a_constant_feature_is_centerd_and_no_more(self):
    x = np.full((8, 2), 4, np.float32)
    x[:, 1] = np.arange(8)
    mean, std = normalize.constants('mine', x, np.arange(8))
    np.testing.assert_allclose(std, [1, np.arange(8).std()], rtol=1e-6)
    np.testing.assert_allclose(normalize.normalizer(mean, std)(x)[:, 0], 0, atol=1e-6)


class NormalizerTest(parameterized.TestCase):

  @parameterized.parameters(*INPUTS)
  def test_standardizes(self, kind):
    x = INPUTS[kind]
    constants = normalize.constants('mine', x, np.arange(1000))
    fn = normalize.normalizer(*constants)
    wanted = x.astype(np.float64) / (255 if kind == 'images' else 1)
    axes = tuple(range(x.ndim - 1))
    wanted = (wanted - wanted.mean(axis=axes)) / wanted.std(axis=axes)
    for found in (fn(x), jax.jit(fn)(x), jax.vmap(jax.jit(fn))(x[:, None])[:, 0]):
      self.assertEqual(found.dtype, np.float32)
      np.testing.assert_allclose(found, wanted, atol=1e-4)

  def test_takes_one_image(self):
    fn = normalize.normalizer(np.float32([.5, .5, .5]), np.float32([.5, .5, .25]))
    np.testing.assert_allclose(fn(jax.numpy.full((2, 2, 3), 255, 'uint8')),
                               np.broadcast_to([1, 1, 2], (2, 2, 3)), rtol=1e-6)

  def test_tokens_pass_unchanged(self):
    tokens = np.arange(12, dtype=np.int32).reshape(3, 4)
    fn = normalize.normalizer(*normalize.constants('mine', tokens, np.arange(3)))
    found = jax.jit(fn)(tokens)
    self.assertEqual(found.dtype, np.int32)
    np.testing.assert_array_equal(found, tokens)


class StandardTest(absltest.TestCase):

  def test_what_is_seen_in_training_is_standardized(self):
    x = INPUTS['vectors']
    found = normalize.normalizer(*normalize.constants('mine', x, ROWS))(x)
    np.testing.assert_allclose(found[ROWS].mean(axis=0), np.zeros(3), atol=1e-3)
    np.testing.assert_allclose(found[ROWS].std(axis=0), np.ones(3), atol=1e-3)


if __name__ == '__main__':
  absltest.main()
