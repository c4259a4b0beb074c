"""Images of a kind are a mosaic."""

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.report.plots import images


class ImagesTest(parameterized.TestCase):

  @parameterized.parameters((1, ()), (2, ()), (3, (3,)))
  def test_images_of_a_kind_are_in_rows(self, channels, colors):
    x = np.random.default_rng(0).normal(size=(5, 3, 2, channels))
    x[1] = 4  # Of one shade all over.
    many, one = images.images({'many': x, 'one': x[:1]}, columns=4).axes
    self.assertEqual((many.get_title(loc='left'), one.get_title(loc='left')), ('many', 'one'))
    shown = np.asarray(many.get_images()[0].get_array())
    self.assertEqual(shown.shape, (2 * 5, 4 * 4, *colors))  # Frames of a pixel.
    image = x[2] if channels == 3 else x[2, ..., 0]
    np.testing.assert_allclose(
        shown[1:4, 9:11], (image - image.min()) / (image.max() - image.min()))
    np.testing.assert_allclose(shown[1:4, 5:7], 0)
    np.testing.assert_allclose(shown[5:, 4:], 1)


if __name__ == '__main__':
  absltest.main()
