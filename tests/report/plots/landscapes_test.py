"""Loss landscapes: lines between models with their barriers, and polygons."""

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.report.landscape import Interpolation, Surface, barycentric, polygon
from hmm_jax.report.plots import landscapes


class LandscapesTest(parameterized.TestCase):

  @parameterized.parameters((3, ['2 - 3', '1 - 2', '0 - 1']),
                            (40, [f'{i} - {i + 1}' for i in range(39, 27, -1)]))
  def test_lines_are_named_with_their_barriers_of_many_the_largest(self, count, named):
    position = np.linspace(0, 1, 5)
    lines = {f'{i} - {i + 1}': Interpolation(position, 2 + i * position**2, position / (i + 1),
                                             0.1234 * i) for i in range(count)}
    figure = landscapes.interpolation(lines)
    loss, accuracy = figure.axes
    self.assertEqual((loss.get_ylabel(), accuracy.get_ylabel()), ('loss', 'accuracy'))
    self.assertEqual([text.get_text().split(':')[0] for text in accuracy.texts], named)
    self.assertEqual(accuracy.texts[-1].get_text().split(': ')[1],
                     f'{0.1234 * int(named[-1].split()[0]):.3f}')
    for axes, field in ((loss, 'loss'), (accuracy, 'accuracy')):
      for curve, line in zip(axes.get_lines(), lines.values(), strict=True):
        np.testing.assert_array_equal(curve.get_xydata(),
                                      np.stack([position, getattr(line, field)], axis=1))
    self.assertIn(f'mean {0.0617 * (count - 1):.3f}', figure.get_supxlabel())
    figure.draw_without_rendering()
    self.assertGreater(loss.get_position().width * figure.get_figwidth(), 2.5)

  def test_a_polygon_shows_its_models_and_their_mean(self):
    vertices = polygon(5)
    points = np.concatenate([np.zeros((1, 2)), 0.5 * vertices, vertices])
    loss = points[:, 0] + 10
    surface = Surface(vertices, points, barycentric(points, vertices), loss, 1 / loss)
    figure = landscapes.landscape(surface, [f'client {k}' for k in (7, 2, 9, 0, 4)])
    axes, bar = figure.axes
    self.assertEqual(axes.get_aspect(), 1)
    self.assertEqual(bar.get_ylabel(), 'loss')
    contours = axes.collections[0]
    self.assertLessEqual(contours.levels[0], loss.min())
    self.assertGreaterEqual(contours.levels[-1], loss.max())
    # What is filled at the right end is the highest level.
    right = contours.get_paths()[-1].vertices[:, 0]
    self.assertGreater(right.min(), 0.7)
    self.assertEqual([text.get_text() for text in axes.texts],
                     ['client 7', 'client 2', 'client 9', 'client 0', 'client 4'])
    for text, corner in zip(axes.texts, vertices):
      np.testing.assert_allclose(np.array(text.xy) / np.linalg.norm(text.xy), corner, atol=1e-9)
    corners, center = axes.get_lines()
    np.testing.assert_array_equal(corners.get_xydata(), vertices)
    np.testing.assert_array_equal(center.get_xydata(), [[0, 0]])
    self.assertIn('✕ their mean', figure.get_supxlabel())
    names = [text.get_text() for text in landscapes.landscape(surface).axes[0].texts]
    self.assertEqual(names, ['0', '1', '2', '3', '4'])

  def test_a_flat_polygon_is_drawn_too(self):
    vertices = polygon(3)
    points = np.concatenate([np.zeros((1, 2)), vertices])
    flat = Surface(vertices, points, barycentric(points, vertices), np.ones(4), np.ones(4))
    landscapes.landscape(flat).draw_without_rendering()


if __name__ == '__main__':
  absltest.main()
