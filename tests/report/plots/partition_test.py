"""The heat map of a partition shows which client holds what."""

from absl.testing import absltest, parameterized
from matplotlib.colors import LogNorm
import numpy as np

from hmm_jax.report.plots import partition


class PartitionTest(parameterized.TestCase):

  def test_each_client_is_a_column_and_each_class_a_row(self):
    counts = np.array([[1, 0, 3], [4, 5, 0]])
    axes, bar = partition.partition(counts, 'fedavg').axes
    shown = axes.get_images()[0].get_array()
    np.testing.assert_array_equal(shown.filled(0), counts.T)
    np.testing.assert_array_equal(shown.mask, counts.T == 0)  # Which are gray.
    self.assertEqual((axes.get_xlabel(), axes.get_ylabel()), ('client', 'class'))
    self.assertEqual(bar.get_ylabel(), 'training examples')

  @parameterized.parameters((1, 10, False), (1, 1000, True), (100, 1000, False))
  def test_counts_that_span_decades_have_a_logarithmic_scale(self, least, most, log):
    figure = partition.partition(np.array([[least, most], [0, most]]))
    norm = figure.axes[0].get_images()[0].norm
    self.assertEqual(isinstance(norm, LogNorm), log)
    figure.draw_without_rendering()
    ticks = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    self.assertNotIn('$', ''.join(ticks))

  @parameterized.parameters((1, 1), (1000, 10), (3, 200))
  def test_any_partition_can_be_drawn(self, clients, classes):
    for counts in (np.ones((clients, classes), int), np.zeros((clients, classes), int)):
      partition.partition(counts).draw_without_rendering()


if __name__ == '__main__':
  absltest.main()
