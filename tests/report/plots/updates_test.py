"""The updates in an atlas: coefficients by client and round, and a histogram of delays."""

from absl.testing import absltest
import numpy as np

from hmm_jax.report.plots import updates


class UpdatesTest(absltest.TestCase):

  def test_coefficients_of_corrupted_clients_come_first_in_red(self):
    rows = [{'round': r, 'seed': s, 'client': k, 'coefficient': 0.1 * k * (-1) ** r + s}
            for s in (4, 5) for r in (1, 2, 3) for k in (2, 7, 9) if (r, k) != (2, 7)]
    for corrupted, ids, colors in (
        ({9}, [9, 2, 7], ['red', 'black', 'black']), ((), [2, 7, 9], ['black'] * 3)):
      figure = updates.coefficients(rows, corrupted)
      axes, bar = figure.axes
      self.assertEqual(bar.get_ylabel(), "coefficient of the client's update")
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
    figure = updates.staleness([*rows, {'round': 2, 'seed': 0}])
    bars = [(round(bar.get_center()[0]), bar.get_height()) for bar in figure.axes[0].patches]
    self.assertEqual(bars, [(0, 2), (2, 4)])


if __name__ == '__main__':
  absltest.main()
