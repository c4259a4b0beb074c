"""Tables of clients are heat maps, one panel for each of some evaluations."""

import itertools

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.report.plots import weights


def evaluated(accuracies, *, seed=0, number=1, **columns):
  """Returns rows of clients.csv with these test accuracies; None is nobody's."""
  rows = []
  for client, value in enumerate(accuracies):
    own = {} if value is None else {'test/accuracy': value}
    rows.append({'round': number, 'seed': seed, 'client': client, **own}
                | {name.replace('__', '/'): values[client] for name, values in columns.items()})
  return rows


class WeightsTest(parameterized.TestCase):

  def tables(self, rows):
    """Returns the titles, tables and ranges of colors of each picture, and the figures."""
    figures, found = weights.client_tables(rows), {}
    for name, figure in figures.items():
      *panels, bar = figure.axes
      self.assertEqual(bar.get_ylabel(), name.replace('/', ', '))
      found[name] = [(axis.get_title(loc='left'), axis.get_images()[0].get_array().tolist(),
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
        'weight': [('round 1', [[5, 50], [6, 100]], (5, 100)),
                       ('round 2', [[7, 50], [8, 100]], (5, 100)),
                       ('round 3', [[8, 50], [9, 100]], (5, 100))],
        'a/b': [(f'round {r}', [[7], [8]], (7, 8)) for r in (1, 2, 3)]})
    for axis in figures['weight'].axes[:3]:
      self.assertEqual(axis.get_xlabel(), 'model')
    self.assertEqual(figures['weight'].axes[0].get_ylabel(), 'client')

  @parameterized.parameters((1, [3]), (2, [3, 6]), (6, [3, 6, 9, 12, 15, 18]),
                            (11, [3, 9, 15, 21, 27, 33]))
  def test_evenly_spread_evaluations_are_drawn(self, count, rounds):
    rows = [row for r in range(3, 3 * count + 1, 3)
            for row in evaluated([1], number=r, weight__0=[0.5])]
    found, _ = self.tables(rows)
    self.assertEqual([title for title, *_ in found['weight']], [f'round {r}' for r in rounds])

  def test_rows_from_before_a_column_are_left_out(self):
    rows = evaluated([1, 1]) + evaluated([1, 1], number=2, weight__0=[0.25, 0.75])
    self.assertEqual(self.tables(rows)[0],
                     {'weight': [('round 2', [[0.25], [0.75]], (0.25, 0.75))]})

  def test_where_clients_have_no_tables_nothing_is_drawn(self):
    for rows in ([], evaluated([1, 0.5])):
      self.assertEmpty(self.tables(rows)[0])

  @parameterized.parameters((1, 1, 1), (100, 20, 1), (5, 1, 6), (1, 20, 6), (100, 20, 6))
  def test_tables_of_any_size_can_be_read(self, clients, models, panels):
    values = np.linspace(0, 1, clients)
    rows = [row for r in range(panels) for row in evaluated(
        values, number=r, **{f'weight__{j}': values for j in range(models)})]
    _, figures = self.tables(rows)
    figure = figures['weight']
    figure.draw_without_rendering()
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


if __name__ == '__main__':
  absltest.main()
