"""Sizes and bad input."""

from absl.testing import absltest, parameterized
import jax

from hmm_jax import tree
from hmm_jax.models.vgg16 import vgg16
from hmm_jax.types import InputError


class VggTest(parameterized.TestCase):

  @parameterized.parameters(('batch', 33_646_666), ('group', 33_646_666), ('none', 33_638_218))
  def test_parameters(self, norm, count):
    model = vgg16(norm=norm, classes=10, input_shape=(32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    self.assertEqual(tree.size(variables['params']), count)

  def test_needs_five_halvings(self):
    with self.assertRaisesRegex(InputError, 'got vgg16 with images of 28x28; expected at least 32'):
      vgg16(classes=10, input_shape=(28, 28, 1))


if __name__ == '__main__':
  absltest.main()
