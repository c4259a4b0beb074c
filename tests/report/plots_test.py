"""The pictures of a run are written, one a kind of metric."""

import itertools
import os
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np
from PIL import Image

from hmm_jax.report import plots
from hmm_jax.report.landscape import Interpolation, Surface, barycentric, polygon


def evaluated(accuracies, *, seed=0, number=1, **columns):
  """Returns rows of clients.csv with these test accuracies; None is nobody's."""
  rows = []
  for client, value in enumerate(accuracies):
    own = {} if value is None else {'test/accuracy': value}
    rows.append({'round': number, 'seed': seed, 'client': client, **own}
                | {name.replace('__', '/'): values[client] for name, values in columns.items()})
  return rows


class PlotsTest(parameterized.TestCase):

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

  @parameterized.parameters(1, 2, 5)
  def test_a_curve_is_drawn_for_however_few_evaluations(self, count):
    rows = [{'round': 10 * r, 'seed': s, 'global/test/accuracy': r / 10 + s / 5,
             'clients_worst/test/accuracy': r / 20}
            for r in range(1, count + 1) for s in range(3)]
    [figure] = self.saved(plots.learning_curves, rows, '').values()
    axes, = figure.axes
    lines = [line for line in axes.get_lines() if line.get_marker() in ('None', 'o')]
    rounds = 10 * np.arange(1, count + 1)
    for line, mean in zip(lines, (rounds / 100 + 0.2, rounds / 200), strict=True):
      np.testing.assert_allclose(line.get_xydata(), np.stack([rounds, mean], axis=1))
    self.assertSeen(figure, lines[0])
    self.assertBand(axes, 0, rounds / 100, rounds / 100 + 0.4)
    self.assertEqual([text.get_text() for text in figure.legends[0].get_texts()],
                     ['global/test/accuracy', 'clients_worst/test/accuracy'])
    # Eight names would hide the curves.
    self.assertFalse(figure.legends[0].get_window_extent().overlaps(axes.get_window_extent()))

  def assertSeen(self, figure, line):  # noqa: N802
    """Says that a line leaves its color in the picture, be it of one point."""
    canvas, inked = FigureCanvasAgg(figure), []
    for visible in (False, True):
      line.set_visible(visible)
      canvas.draw()
      inked.append((np.asarray(canvas.buffer_rgba()) != 255).any(axis=2).sum())
    self.assertLess(*inked)

  def assertBand(self, axes, place, low, high):  # noqa: N802
    """Says what the band of the so many-th line is, or the bar of a point."""
    drawn = axes.collections[place]
    corners = np.concatenate([path.vertices for path in drawn.get_paths()])
    for x, a, b in zip(np.unique(corners[:, 0]), low, high, strict=True):
      here = corners[corners[:, 0] == x, 1]
      np.testing.assert_allclose([here.min(), here.max()], [a, b], atol=1e-9)

  def saved(self, draw, *args):
    """Returns the figures that `draw` saves, by path."""
    with mock.patch.object(plots, 'save') as save:
      draw(*args)
    return {call.args[1]: call.args[0] for call in save.call_args_list}

  def test_clients_stand_in_rising_order_of_accuracy(self):
    runs = {
        # An earlier evaluation does not count, nor an earlier one of the same round.
        'fedmerge': [*evaluated([0.1] * 4), *evaluated([0.2] * 4, number=2),
                     *evaluated([0.9, None, 0.5, 0.7], number=2),
                     *evaluated([0.6, None, 0.9, 0.7], number=2, seed=1)],
        'fedavg': evaluated([0.3, None, 0.2, 0.4])}
    figure = self.drawn(plots.clients, runs)
    axes, = figure.axes
    merge, average = axes.get_lines()
    np.testing.assert_array_equal(merge.get_xydata()[:, 0], [1, 2, 3])
    np.testing.assert_allclose(merge.get_xydata()[:, 1], [0.55, 0.7, 0.9])
    np.testing.assert_allclose(average.get_xydata()[:, 1], [0.2, 0.3, 0.4])
    gap = 0.05 * 2**0.5
    self.assertBand(axes, 0, [0.55 - gap, 0.7, 0.9], [0.55 + gap, 0.7, 0.9])
    self.assertBand(axes, 1, [0.2, 0.3, 0.4], [0.2, 0.3, 0.4])
    self.assertEqual([text.get_text() for text in axes.get_legend().get_texts()],
                     ['fedmerge: mean 0.717', 'fedavg: mean 0.300'])

  @parameterized.parameters(1, 5, 100)
  def test_any_number_of_clients_is_seen(self, count):
    figure = self.drawn(plots.clients, {'fedavg': evaluated(np.linspace(0.4, 0.8, count))})
    axes, = figure.axes
    self.assertSeen(figure, axes.get_lines()[0])
    for tick in axes.get_xticks():
      self.assertEqual(tick, round(tick))

  def test_a_band_stays_within_what_an_accuracy_can_be(self):
    rows = [*evaluated([0, 0.5, 1]), *evaluated([1, 1, 1], seed=1)]
    low, high = self.drawn(plots.clients, {'fedavg': rows}).axes[0].get_ylim()
    self.assertBetween(low, -0.05, 0)
    self.assertBetween(high, 1, 1.05)
    low, high = self.drawn(plots.clients, {'a': evaluated([0.9, 0.95])}).axes[0].get_ylim()
    self.assertGreater(low, 0.8)  # What differs little is seen as well.

  def tables(self, rows):
    """Returns the titles, tables and ranges of colors of each picture, and the figures."""
    figures, found = self.saved(plots.client_tables, rows, ''), {}
    for name, figure in figures.items():
      *panels, bar = figure.axes
      self.assertEqual(bar.get_ylabel() + '.png', name)
      found[name] = [(axis.get_title(), axis.get_images()[0].get_array().tolist(),
                      axis.get_images()[0].get_clim()) for axis in panels]
    return found, figures

  def test_tables_of_clients_over_rounds(self):
    rows = []
    for number in (1, 2, 2, 3):  # The second row of a round is that after the finish.
      for seed in (5, 6):
        shift = len(rows) // 4
        first = [seed + shift, seed + shift + 1]
        second = [10 * seed, 20 * seed]
        rows += evaluated([1, 1], number=number, seed=seed, weight__0=first, weight__1=second,
                          alpha=[0, 1], a__b__0=[7, 8])[::-1]
    found, figures = self.tables(rows)
    self.assertEqual(found, {
        'weight.png': [('round 1', [[5, 50], [6, 100]], (5, 100)),
                       ('round 2', [[7, 50], [8, 100]], (5, 100)),
                       ('round 3', [[8, 50], [9, 100]], (5, 100))],
        'a/b.png': [(f'round {r}', [[7], [8]], (7, 8)) for r in (1, 2, 3)]})
    for axis in figures['weight.png'].axes[:3]:
      self.assertEqual(axis.get_xlabel(), 'model')
    self.assertEqual(figures['weight.png'].axes[0].get_ylabel(), 'client')

  @parameterized.parameters((1, [3]), (2, [3, 6]), (6, [3, 6, 9, 12, 15, 18]),
                            (11, [3, 9, 15, 21, 27, 33]))
  def test_evenly_spread_evaluations_are_drawn(self, count, rounds):
    rows = [row for r in range(3, 3 * count + 1, 3)
            for row in evaluated([1], number=r, weight__0=[0.5])]
    found, _ = self.tables(rows)
    self.assertEqual([title for title, *_ in found['weight.png']], [f'round {r}' for r in rounds])

  def test_rows_from_before_a_column_are_left_out(self):
    rows = evaluated([1, 1]) + evaluated([1, 1], number=2, weight__0=[0.25, 0.75])
    self.assertEqual(self.tables(rows)[0],
                     {'weight.png': [('round 2', [[0.25], [0.75]], (0.25, 0.75))]})

  def test_where_clients_have_no_tables_nothing_is_drawn(self):
    for rows in ([], evaluated([1, 0.5])):
      self.assertEmpty(self.tables(rows)[0])

  @parameterized.parameters((1, 1, 1), (100, 20, 1), (5, 1, 6), (1, 20, 6), (100, 20, 6))
  def test_tables_of_any_size_can_be_read(self, clients, models, panels):
    values = np.linspace(0, 1, clients)
    rows = [row for r in range(panels) for row in evaluated(
        values, number=r, **{f'weight__{j}': values for j in range(models)})]
    _, figures = self.tables(rows)
    figure = figures['weight.png']
    figure.canvas.draw()
    *axes, bar = figure.axes
    inch = figure.dpi
    for axis in axes:
      box = axis.get_window_extent()
      self.assertGreater(box.width / inch, 1)
      self.assertGreater(box.height / inch, 2)
      for ticks, last in ((axis.get_xticks(), models), (axis.get_yticks(), clients)):
        inside = [tick for tick in ticks if -0.5 <= tick <= last - 0.5]
        self.assertNotEmpty(inside)
        self.assertEqual(inside, [round(tick) for tick in inside])
      labels = [label.get_window_extent() for label in axis.get_xticklabels()
                if box.x0 <= label.get_window_extent().x0 <= box.x1]
      for one, other in itertools.pairwise(labels):
        self.assertLess(one.x1, other.x0)
    gap = bar.get_window_extent().x0 - axes[-1].get_window_extent().x1
    self.assertBetween(gap / inch, 0, 0.5)
    self.assertGreater(bar.get_window_extent().height, 0.9 * box.height)

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

  def test_coefficients_of_corrupted_clients_come_first_in_red(self):
    rows = [{'round': r, 'seed': s, 'client': k, 'coefficient': 0.1 * k * (-1) ** r + s}
            for s in (4, 5) for r in (1, 2, 3) for k in (2, 7, 9) if (r, k) != (2, 7)]
    for corrupted, ids, colors in (
        ({9}, [9, 2, 7], ['red', 'black', 'black']), ((), [2, 7, 9], ['black'] * 3)):
      figure = self.drawn(plots.coefficients, rows, corrupted)
      axes, bar = figure.axes
      self.assertEqual(bar.get_ylabel(), 'coefficient')
      self.assertEqual([label.get_text() for label in axes.get_yticklabels()], [*map(str, ids)])
      self.assertEqual([label.get_color() for label in axes.get_yticklabels()], colors)
      self.assertEqual('red' in axes.get_ylabel(), bool(corrupted))
      image, = axes.get_images()
      drawn = np.where(image.get_array().mask, np.nan, image.get_array().data) if np.ma.is_masked(
          image.get_array()) else np.asarray(image.get_array())
      wanted = np.array([[0.1 * k * (-1) ** r + 4 for r in (1, 2, 3)] for k in ids])
      wanted[ids.index(7), 1] = np.nan
      np.testing.assert_allclose(drawn, wanted)
      low, high = image.get_clim()
      self.assertEqual(-low, high)  # White is 0.
      self.assertAlmostEqual(high, 4.9)

  def test_delays_are_counted(self):
    rows = [{'round': 1, 'seed': s, 'delay': d} for s in (0, 1) for d in (0.0, 2.0, 2.0)]
    figure = self.drawn(plots.staleness, [*rows, {'round': 2, 'seed': 0}])
    bars = [(bar.get_center()[0], bar.get_height()) for bar in figure.axes[0].patches]
    self.assertEqual(bars, [(0, 2), (2, 4)])

  @parameterized.parameters((1, [(1, 1)]), (2, [(1, 1), (2, 2)]), (7, [(1, 2), (3, 4), (5, 7)]))
  def test_searches_of_early_and_late_rounds_are_apart(self, rounds, thirds):
    rows = [{'round': r, 'seed': s, 'step': step, 'held_out_loss': r + step}
            | ({'loss': 2 * r + step + s} if step else {})
            for r in range(1, rounds + 1) for s in (0, 1) for step in (0, 10, 20)]
    figure = self.drawn(plots.searches, rows)
    lines = figure.axes[0].get_lines()
    wanted = []
    for first, last in thirds:
      mean = (first + last) / 2
      wanted += [(f'minibatches, rounds {first} to {last}',
                  [[10, 2 * mean + 10.5], [20, 2 * mean + 20.5]]),
                 (f'held out, rounds {first} to {last}',
                  [[0, mean], [10, mean + 10], [20, mean + 20]])]
    for line, (label, points) in zip(lines, wanted, strict=True):
      self.assertEqual(line.get_label(), label)
      np.testing.assert_allclose(line.get_xydata(), points)

  def test_searches_that_saw_no_number_are_left_out(self):
    rows = [{'round': 1, 'seed': s, 'step': step} | ({} if s else {'held_out_loss': 3 - step / 10})
            | ({} if s or not step else {'loss': step}) for s in (0, 1) for step in (0, 10)]
    figure = self.drawn(plots.searches, rows)
    minibatches, held_out = figure.axes[0].get_lines()
    np.testing.assert_allclose(minibatches.get_xydata(), [[10, 10]])
    np.testing.assert_allclose(held_out.get_xydata(), [[0, 3], [10, 2]])

  @parameterized.parameters((1, ()), (2, ()), (3, (3,)))
  def test_images_of_a_kind_are_in_rows(self, channels, colors):
    x = np.random.default_rng(0).normal(size=(5, 3, 2, channels))
    x[1] = 4  # Of one shade all over.
    figure = self.drawn(lambda kinds, path: plots.images(kinds, path, columns=4),
                        {'many': x, 'one': x[:1]})
    many, one = figure.axes
    self.assertEqual((many.get_title(), one.get_title()), ('many', 'one'))
    shown = np.asarray(many.get_images()[0].get_array())
    self.assertEqual(shown.shape, (2 * 5, 4 * 4, *colors))  # Frames of a pixel.
    image = x[2] if channels == 3 else x[2, ..., 0]
    np.testing.assert_allclose(
        shown[1:4, 9:11], (image - image.min()) / (image.max() - image.min()))
    np.testing.assert_allclose(shown[1:4, 5:7], 0)
    np.testing.assert_allclose(shown[5:, 4:], 1)

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
    corners, center = axes.get_lines()
    np.testing.assert_array_equal(corners.get_xydata(), vertices)
    np.testing.assert_array_equal(center.get_xydata(), [[0, 0]])
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
