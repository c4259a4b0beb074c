"""The clients' own accuracies are drawn in rising order, those of several runs in one figure."""

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.report.plots import clients


def evaluated(accuracies, *, seed=0, number=1):
  """Returns rows of clients.csv with these test accuracies; None is nobody's."""
  return [{'round': number, 'seed': seed, 'client': client}
          | ({} if value is None else {'test/accuracy': value})
          for client, value in enumerate(accuracies)]


class ClientsTest(parameterized.TestCase):

  def test_clients_stand_in_rising_order_of_accuracy(self):
    runs = {
        # An earlier evaluation does not count, nor an earlier one of the same round.
        'fedmerge': [*evaluated([0.1] * 4), *evaluated([0.2] * 4, number=2),
                     *evaluated([0.9, None, 0.5, 0.7], number=2),
                     *evaluated([0.6, None, 0.9, 0.7], number=2, seed=1),
                     *evaluated([0.6, None, 0.9, 0.7], number=2, seed=2)],
        'fedavg': evaluated([0.3, None, 0.2, 0.4])}
    axes, = clients.clients(runs).axes
    merge, average = axes.get_lines()
    np.testing.assert_array_equal(merge.get_xydata()[:, 0], [1, 2, 3])
    np.testing.assert_allclose(merge.get_xydata()[:, 1], [1.7 / 3, 0.7, 0.9])
    np.testing.assert_allclose(average.get_xydata()[:, 1], [0.2, 0.3, 0.4])
    corners = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    worst, gap = corners[corners[:, 0] == 1, 1], np.std([0.5, 0.6, 0.6], ddof=1)
    np.testing.assert_allclose([worst.min(), worst.max()], [1.7 / 3 - gap, 1.7 / 3 + gap])
    self.assertCountEqual([text.get_text() for text in axes.texts],
                          ['fedmerge  mean 0.722', 'fedavg  mean 0.300'])

  @parameterized.parameters(1, 5, 100)
  def test_any_number_of_clients_is_seen(self, count):
    axes, = clients.clients({'fedavg': evaluated(np.linspace(0.4, 0.8, count))}).axes
    self.assertLen(axes.get_lines()[0].get_xydata(), count)
    self.assertEqual(axes.get_lines()[0].get_marker(), 'o' if count == 1 else 'None')
    for tick in axes.get_xticks():
      self.assertEqual(tick, round(tick))

  def test_a_band_stays_within_what_an_accuracy_can_be(self):
    rows = [*evaluated([0, 0.5, 1]), *evaluated([1, 1, 1], seed=1), *evaluated([0, 0, 1], seed=2)]
    axes, = clients.clients({'fedavg': rows}).axes
    corners = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    self.assertBetween(corners[:, 1].min(), 0, 1)
    self.assertEqual(corners[:, 1].max(), 1)
    self.assertBetween(axes.get_ylim()[1], 1, 1.05)
    close, = clients.clients({'a': evaluated([0.9, 0.95])}).axes
    self.assertGreater(close.get_ylim()[0], 0.8)  # What differs little is seen as well.

  def test_a_long_name_leaves_room_for_the_curve(self):
    figure = clients.clients({'long ' * 40: evaluated([0.1, 0.2])})
    figure.draw_without_rendering()
    axes, = figure.axes
    self.assertGreater(axes.get_position().width * figure.get_figwidth(), 1.2)
    self.assertEndsWith(axes.texts[0].get_text(), '…  mean 0.150')

  def test_it_is_said_that_a_final_merge_came_before(self):
    before = [*evaluated([0.1, 0.2]), *evaluated([0.3, 0.4], number=2)]
    for rows, said in ((before, False), ([*before, *evaluated([0.5, 0.6], number=2)], True)):
      caption = clients.clients({'gossip': rows}).get_supxlabel()
      self.assertEqual('after the final merge' in caption.replace('\n', ' '), said)

  def test_a_seed_that_is_written_in_part_is_left_out(self):
    rows = [*evaluated([0.1, 0.2]), *evaluated([0.3], seed=1)]
    np.testing.assert_allclose(clients.scores(rows, 'accuracy'), [[0.1, 0.2]])


if __name__ == '__main__':
  absltest.main()
