"""Learning curves: what they show of each kind of metric, and of which split."""

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.report.plots import curves


def rows_of(count, seeds=3, **values):
  """Returns rows of metrics.csv, whose values are functions of round and seed."""
  return [{'round': 10 * r, 'seed': s}
          | {name.replace('__', '/'): value(r, s) for name, value in values.items()}
          for r in range(1, count + 1) for s in range(seeds)]


def labels(axes):
  """Returns the labels at the ends of the lines, by height."""
  return [text.get_text() for text in sorted(axes.texts, key=lambda text: -text.xyann[1])]


def band(axes, place=0):
  """Returns the lower and the upper edge of a band, or the ends of an error bar."""
  corners = np.concatenate([path.vertices for path in axes.collections[place].get_paths()])
  each = [corners[corners[:, 0] == x, 1] for x in np.unique(corners[:, 0])]
  return [y.min() for y in each], [y.max() for y in each]


class CurvesTest(parameterized.TestCase):

  def test_a_figure_for_each_kind_and_a_panel_for_each_split(self):
    rows = rows_of(2, train__loss=lambda r, s: 1 / r, global__test__accuracy=lambda r, s: r / 9 + s,
                   global__validation__accuracy=lambda r, s: r / 8 + s)
    figures = curves.learning_curves(rows, 'fedavg on digits')
    self.assertEqual(list(figures), ['accuracy', 'loss'])
    titles = [axes.get_title(loc='left') for axes in figures['accuracy'].axes]
    self.assertEqual(titles, ['test examples', 'validation examples'])
    self.assertEqual(figures['accuracy'].get_suptitle(), 'fedavg on digits')
    self.assertEqual(figures['loss'].axes[0].get_ylabel(), 'cross-entropy loss')

  def test_a_column_that_some_rows_lack_is_left_out(self):
    rows = [{'round': 1, 'seed': 0, 'train/loss': 2.0},
            {'round': 2, 'seed': 0, 'train/loss': 1.0, 'consensus': 3.0}]
    self.assertEqual(list(curves.kinds(rows)), ['loss'])
    self.assertEqual(list(curves.kinds(rows[::-1])), ['loss'])
    self.assertEmpty(curves.kinds([]))

  def test_a_constant_is_no_curve_unless_it_is_an_accuracy_or_a_loss(self):
    rows = rows_of(3, agent_sent__bytes=lambda r, s: 7, agent_received__bytes=lambda r, s: r,
                   server__forwards=lambda r, s: 7, clients_worst__test__accuracy=lambda r, s: 0.0)
    self.assertEqual(curves.kinds(rows), {
        'accuracy': {'test': ['clients_worst/test/accuracy']},
        'bytes': {'': ['agent_received/bytes']}})
    self.assertIn('forwards', curves.kinds(rows[:3]))  # Of one evaluation all are constant.

  @parameterized.parameters(2, 5)
  def test_a_line_is_the_mean_in_a_band_of_the_std(self, count):
    rows = rows_of(count, global__test__accuracy=lambda r, s: 0.3 + r / 20 + s / 10,
                   clients_worst__test__accuracy=lambda r, s: r / 20)
    axes, = curves.learning_curves(rows)['accuracy'].axes
    rounds = 10 * np.arange(1, count + 1)
    for line, mean in zip(axes.get_lines(), (rounds / 200 + 0.4, rounds / 200), strict=True):
      np.testing.assert_allclose(line.get_xydata(), np.stack([rounds, mean], axis=1))
    np.testing.assert_allclose(band(axes), [rounds / 200 + 0.3, rounds / 200 + 0.5])
    self.assertEqual(labels(axes), [f'global model  {0.4 + count / 20:.3f}',
                                    f'worst tenth of clients  {count / 20:.3f}'])

  @parameterized.parameters((1, 'one seed'), (2, 'mean (bold) and both of 2 seeds (thin)'),
                            (3, 'mean ± std over 3 seeds'))
  def test_the_caption_says_what_several_seeds_are(self, seeds, said):
    rows = rows_of(2, seeds, train__loss=lambda r, s: r + s)
    figure = curves.learning_curves(rows)['loss']
    axes, = figure.axes
    self.assertEqual(figure.get_supxlabel(), said)
    self.assertLen(axes.get_lines(), {1: 1, 2: 3, 3: 1}[seeds])
    self.assertLen(axes.collections, {1: 0, 2: 0, 3: 1}[seeds])

  def test_one_evaluation_is_a_point_with_its_spread(self):
    rows = rows_of(1, global__test__accuracy=lambda r, s: 0.4 + s / 10)
    axes, = curves.learning_curves(rows)['accuracy'].axes
    np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), [[10, 0.5]])
    np.testing.assert_allclose(band(axes), [[0.4], [0.6]])

  def test_a_final_merge_is_a_mark_and_no_part_of_the_curve(self):
    rows = rows_of(2, merged__test__accuracy=lambda r, s: r / 10,
                   train__loss=lambda r, s: float(r))
    rows += [{**row, 'merged/test/accuracy': 0.9 + row['seed'] / 20} for row in rows[-3:]]
    figures = curves.learning_curves(rows)
    axes, = figures['accuracy'].axes
    line, mark = axes.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[10, 0.1], [20, 0.2]])
    np.testing.assert_allclose(mark.get_xydata(), [[20, 0.95]])
    self.assertEqual(labels(axes), ['merged model  0.200 → ★ 0.950'])
    self.assertIn('★ after the final merge', figures['accuracy'].get_supxlabel())
    # What the merge has not changed has no mark.
    self.assertEqual(labels(figures['loss'].axes[0]), ['training  2'])
    self.assertNotIn('★', figures['loss'].get_supxlabel())

  def test_equal_metrics_are_one_line(self):
    rows = rows_of(2, agent_sent__bytes=lambda r, s: 1e6 * r,
                   agent_received__bytes=lambda r, s: 1e6 * r)
    axes, = curves.learning_curves(rows)['bytes'].axes
    self.assertEqual(labels(axes), ['mean sent = mean received  2'])
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [1, 2])  # Megabytes.

  def test_bands_stay_within_what_can_be(self):
    rows = rows_of(3, global__test__accuracy=lambda r, s: [0.0, 1.0, 1.0][s],
                   train__loss=lambda r, s: [0.01, 2.0, 0.01][s] / r)
    figures = curves.learning_curves(rows)
    low, high = band(figures['accuracy'].axes[0])
    self.assertBetween(min(low), 0, 1)
    self.assertEqual(max(high), 1)
    self.assertEqual(min(band(figures['loss'].axes[0])[0]), 0)
    self.assertBetween(figures['accuracy'].axes[0].get_ylim()[1], 1, 1.05)

  def test_what_spans_decades_is_logarithmic(self):
    rows = rows_of(4, consensus=lambda r, s: 10.0 ** -r, train__loss=lambda r, s: 1 / r)
    figures = curves.learning_curves(rows)
    self.assertEqual(figures['consensus'].axes[0].get_yscale(), 'log')
    self.assertEqual(figures['loss'].axes[0].get_yscale(), 'linear')
    for decades in (2, 15):
      rows = rows_of(4, consensus=lambda r, s, d=decades: 10.0 ** (-r * d / 4))
      axes, = curves.learning_curves(rows)['consensus'].axes
      low, high = axes.get_ylim()
      self.assertBetween(sum(low <= tick <= high for tick in axes.get_yticks()), 2, 9)
    # A merge to 0 is marked at the foot, and not far below the axes.
    merged = rows + [{**row, 'consensus': 0.0} for row in rows[-3:]]
    axes, = curves.learning_curves(merged)['consensus'].axes
    self.assertEqual(axes.get_lines()[1].get_ydata()[0], axes.get_ylim()[0])

  @parameterized.parameters(float('nan'), float('inf'))
  def test_losses_that_are_no_numbers_are_left_out(self, value):
    rows = rows_of(3, train__loss=lambda r, s: value if r == 3 else 1.0 * r,
                   global__test__loss=lambda r, s: value)
    for axes in curves.learning_curves(rows)['loss'].axes:
      self.assertTrue(np.isfinite(axes.get_ylim()).all())

  def test_a_seed_that_is_written_in_part_shortens_the_lines(self):
    rows = rows_of(3, 2, train__loss=lambda r, s: 1.0 * r)[:-1]
    self.assertEqual(curves.line(rows, 'train/loss', 'a').rounds.tolist(), [10, 20])

  def test_many_lines_differ_in_color_or_dashes(self):
    rows = {str(i): rows_of(2, train__loss=lambda r, s, i=i: r + i) for i in range(20)}
    figure = curves.panels({'': curves.of_runs(rows, 'train/loss')}, 'loss')
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    self.assertLen(looks, 20)


if __name__ == '__main__':
  absltest.main()
