"""The generator's sizes, values and draws."""

from absl.testing import absltest, parameterized
import jax
import numpy as np

from hmm_jax import tree
from hmm_jax.models.generator import generator
from hmm_jax.types import InputError


class GeneratorTest(parameterized.TestCase):

  def test_has_the_published_size(self):
    init = generator(classes=10, features=32).init
    # 32 numbers and 10 classes, 256 hidden units.
    self.assertEqual(tree.size(jax.eval_shape(init, jax.random.key(0))), 42 * 256 + 256 + 257 * 32)

  def test_by_hand(self):
    init, apply, _ = generator(classes=3, features=4, hidden=6, noise=2)
    params, labels = init(jax.random.key(0)), np.array([2, 0, 2, 1])
    features, noise = apply(params, labels, jax.random.key(1))
    layers = params['params']
    x = np.concatenate([noise, np.eye(3)[labels]], axis=1)
    hidden = np.maximum(x @ layers['Dense_0']['kernel'] + layers['Dense_0']['bias'][None], 0)
    wanted = hidden @ layers['Dense_1']['kernel'] + layers['Dense_1']['bias'][None]
    self.assertEqual(features.shape, (4, 4))
    np.testing.assert_allclose(features, wanted, atol=1e-5)

  def test_noise_is_normal_and_follows_the_key(self):
    init, apply, _ = generator(classes=3, features=4)
    params, labels = init(jax.random.key(0)), np.zeros(2000, np.int32)
    (z, noise), (again, _), (other, _) = (
        apply(params, labels, jax.random.key(seed)) for seed in (1, 1, 2))
    self.assertEqual(noise.shape, (2000, 32))
    np.testing.assert_allclose((noise.mean(), noise.std()), (0, 1), atol=0.02)
    np.testing.assert_array_equal(z, again)
    self.assertGreater(np.abs(z - other).max(), 0.1)

  @parameterized.parameters('hidden', 'noise')
  def test_names_what_is_wrong(self, setting):
    with self.assertRaisesRegex(InputError, f'{setting}=0'):
      generator(classes=3, features=4, **{setting: 0})


if __name__ == '__main__':
  absltest.main()
