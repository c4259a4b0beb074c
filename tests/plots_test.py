"""The pictures of a run are written, one a kind of metric."""

import os
import tempfile
from unittest import mock

from absl.testing import absltest
from matplotlib.figure import Figure
import numpy as np
from PIL import Image

from hmm_jax import plots
from hmm_jax.landscape import Interpolation, Surface, barycentric, polygon


class PlotsTest(absltest.TestCase):

  def test_learning_curves_make_a_picture_a_kind(self):
    rows = [{'round': r, 'seed': s, 'train/loss': 1.0 / r, 'global/test/accuracy': 0.1 * r + s}
            for r in (1, 2) for s in (0, 1)]
    with tempfile.TemporaryDirectory() as folder:
      plots.learning_curves(rows, folder)
      self.assertCountEqual(os.listdir(folder), ['accuracy.png', 'loss.png'])

  def test_a_column_that_early_rows_lack_is_left_out(self):
    rows = [{'round': 1, 'seed': 0, 'train/loss': 2.0},
            {'round': 2, 'seed': 0, 'train/loss': 1.0, 'consensus': 3.0}]
    with tempfile.TemporaryDirectory() as folder:
      plots.learning_curves(rows, folder)
      plots.learning_curves(rows[::-1], folder)
      self.assertEqual(os.listdir(folder), ['loss.png'])

  def test_the_heat_map_shows_who_holds_what(self):
    with tempfile.TemporaryDirectory() as folder:
      pictures = []
      for counts in (np.eye(3), np.ones((3, 3)) - np.eye(3)):
        path = os.path.join(folder, 'partition.png')
        plots.partition(counts, path)
        with Image.open(path) as image:
          pictures.append(np.asarray(image))
      self.assertTrue((pictures[0] != pictures[1]).any())

  def drawn(self, draw, *args):
    """Returns the figure that `draw` saves, after seeing that it is a picture."""
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'plots', 'picture.png')
      with mock.patch.object(Figure, 'savefig', autospec=True, side_effect=Figure.savefig) as save:
        draw(args[0], path, *args[1:])
      with Image.open(path) as image:
        self.assertGreater(np.asarray(image).std(), 1)
    return save.call_args.args[0]

  def test_lines_have_their_barriers_in_the_legend(self):
    position = np.linspace(0, 1, 5)
    lines = {f'{i} - {i + 1}': Interpolation(position, 2 + i * position**2, position / (i + 1),
                                             0.1234 * i) for i in range(40)}
    figure = self.drawn(plots.interpolation, lines)
    loss, accuracy = figure.axes
    self.assertEqual((loss.get_ylabel(), accuracy.get_ylabel()), ('loss', 'accuracy'))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    self.assertEqual(labels[:3], ['0 - 1: 0.000', '1 - 2: 0.123', '2 - 3: 0.247'])
    self.assertLen(labels, 40)
    for axes, field in ((loss, 'loss'), (accuracy, 'accuracy')):
      for curve, line in zip(axes.get_lines(), lines.values(), strict=True):
        np.testing.assert_array_equal(curve.get_xydata(),
                                      np.stack([position, getattr(line, field)], axis=1))
    self.assertLen({tuple(curve.get_color()) for curve in loss.get_lines()}, 40)
    self.assertGreater(loss.get_position().width * figure.get_figwidth(), 2.5)
    box = figure.legends[0].get_window_extent()
    self.assertLess(box.height, figure.bbox.height)

  def test_a_polygon_shows_its_models_and_their_mean(self):
    vertices = polygon(5)
    points = np.concatenate([np.zeros((1, 2)), 0.5 * vertices, vertices])
    loss = points[:, 0] + 10
    surface = Surface(vertices, points, barycentric(points, vertices), loss, 1 / loss)
    figure = self.drawn(plots.landscape, surface, [f'client {k}' for k in (7, 2, 9, 0, 4)])
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
    corners, centre = axes.get_lines()
    np.testing.assert_array_equal(corners.get_xydata(), vertices)
    np.testing.assert_array_equal(centre.get_xydata(), [[0, 0]])
    self.assertEqual([text.get_text() for text in axes.get_legend().get_texts()],
                     ['mean of these models'])
    names = [text.get_text() for text in self.drawn(plots.landscape, surface).axes[0].texts]
    self.assertEqual(names, ['0', '1', '2', '3', '4'])

  def test_a_flat_polygon_is_drawn_too(self):
    vertices = polygon(3)
    points = np.concatenate([np.zeros((1, 2)), vertices])
    flat = Surface(vertices, points, barycentric(points, vertices), np.ones(4), np.ones(4))
    self.drawn(plots.landscape, flat)


if __name__ == '__main__':
  absltest.main()
