"""Learning curves: what they show of each kind of metric, and of which split."""

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.report.plots import curves, lines


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
    self.assertEqual(figures['loss'].axes[0].get_ylabel(), 'loss')

  def test_a_column_that_some_rows_lack_is_left_out(self):
    rows = [{'round': 1, 'seed': 0, 'train/loss': 2.0},
            {'round': 2, 'seed': 0, 'train/loss': 1.0, 'consensus': 3.0}]
    self.assertEqual(list(lines.kinds(rows)), ['loss'])
    self.assertEqual(list(lines.kinds(rows[::-1])), ['loss'])
    self.assertEmpty(lines.kinds([]))

  def test_a_constant_is_no_curve_unless_it_is_an_accuracy_or_a_loss(self):
    rows = rows_of(3, agent_sent__bytes=lambda r, s: 7, agent_received__bytes=lambda r, s: r,
                   server__forwards=lambda r, s: 7, clients_worst__test__accuracy=lambda r, s: 0.0)
    self.assertEqual(lines.kinds(rows), {
        'accuracy': {'test': ['clients_worst/test/accuracy']},
        'bytes': {'': ['agent_received/bytes']}})
    self.assertNotIn('bytes', lines.kinds(rows[:3]))  # One evaluation is no curve.

  def test_what_only_the_final_merge_measures_is_no_curve(self):
    rows = rows_of(2, dmm__core=lambda r, s: 0.0, realised__contraction=lambda r, s: 0.1 * r + s)
    merged = [*rows, *({**row, 'dmm/core': 2.0} for row in rows[-3:])]
    self.assertEqual(list(lines.kinds(merged)), ['contraction'])
    seeds = rows_of(2, dmm__core=lambda r, s: 1.0 * s)  # Seeds that differ are no change.
    self.assertEmpty(lines.kinds(seeds))

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
    self.assertEqual(labels(figures['loss'].axes[0]), ['mean over clients  2.00'])
    self.assertNotIn('★', figures['loss'].get_supxlabel())

  def test_what_rounding_leaves_is_no_number(self):
    rows = rows_of(2, consensus=lambda r, s: 5.0 + r, merged__test__loss=lambda r, s: 2.0 / r)
    rows += [{**row, 'consensus': 4e-15, 'merged/test/loss': row['merged/test/loss'] + 1e-6}
             for row in rows[-3:]]
    figures = curves.learning_curves(rows)
    self.assertEqual(labels(figures['consensus'].axes[0]), ['7.00 → ★ ≈ 0'])
    self.assertEqual(labels(figures['loss'].axes[0]), ['merged model  1.00'])

  def test_losses_that_are_told_from_each_other_are_in_one_figure(self):
    rows = rows_of(2, server__average_loss=lambda r, s: 2.0 / r,
                   server__found_loss=lambda r, s: 1.0 / r, inversion__found_loss=lambda r, s: r)
    figures = curves.learning_curves(rows)
    self.assertEqual(labels(figures['server_loss'].axes[0]),
                     ['plain average  1.00', 'found by the search  0.500'])
    self.assertEqual(labels(figures['found_loss'].axes[0]), ['inversion  2.00'])

  @parameterized.parameters((2.0, 'linear'), (99.0, 'log'))
  def test_panels_side_by_side_have_one_scale(self, factor, scale):
    rows = rows_of(2, global__test__loss=lambda r, s: 0.1 * r, train__loss=lambda r, s: 9.0 * r,
                   global__validation__loss=lambda r, s: factor * r)
    test, validation, training, rest = curves.learning_curves(rows)['loss'].axes
    self.assertEqual(test.get_ylim(), validation.get_ylim())
    self.assertEqual([axes.get_yscale() for axes in (test, validation, training)],
                     [scale, scale, 'linear'])
    self.assertBetween(training.get_ylim()[1], 18, 20)
    self.assertEqual(training.get_title(loc='left'), 'training examples')
    self.assertFalse(rest.axison)

  @parameterized.parameters((2, 'o'), (40, 'None'))
  def test_few_evaluations_are_seen_as_such(self, count, marker):
    axes, = curves.learning_curves(rows_of(count, train__loss=lambda r, s: 1 / r))['loss'].axes
    self.assertEqual(axes.get_lines()[0].get_marker() or 'None', marker)

  @parameterized.parameters('consensus', 'agent_sent_max__bytes')
  def test_long_labels_leave_room_for_the_curve(self, name):
    figure, = curves.learning_curves(rows_of(2, **{name: lambda r, s: 1e6 * r})).values()
    figure.draw_without_rendering()
    axes, = figure.axes
    self.assertBetween(axes.get_position().width * figure.get_figwidth(), 2.4, 3)

  def test_equal_metrics_are_one_line(self):
    rows = rows_of(2, agent_sent__bytes=lambda r, s: 1e6 * r,
                   agent_received__bytes=lambda r, s: 1e6 * r)
    axes, = curves.learning_curves(rows)['bytes'].axes
    self.assertEqual(labels(axes), ['mean sent = mean received  2.00'])
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
    self.assertEqual(lines.line(rows, 'train/loss', 'a').rounds.tolist(), [10, 20])

  def test_many_lines_differ_in_color_or_dashes(self):
    rows = {str(i): rows_of(2, train__loss=lambda r, s, i=i: r + i) for i in range(20)}
    figure = curves.panels({'': lines.of_runs(rows, 'train/loss')}, 'loss')
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    self.assertLen(looks, 20)


if __name__ == '__main__':
  absltest.main()
