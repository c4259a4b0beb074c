"""The losses along a search, those of early and of late rounds."""

from absl.testing import absltest, parameterized
import numpy as np

from hmm_jax.report.plots import search


class SearchTest(parameterized.TestCase):

  @parameterized.parameters((1, [(1, 1)]), (2, [(1, 1), (2, 2)]), (7, [(1, 2), (3, 4), (5, 7)]))
  def test_searches_of_early_and_late_rounds_are_apart(self, rounds, thirds):
    rows = [{'round': r, 'seed': s, 'step': step, 'held_out_loss': r + step}
            | ({'loss': 2 * r + step + s} if step else {})
            for r in range(1, rounds + 1) for s in (0, 1) for step in (0, 10, 20)]
    figure = search.searches(rows)
    lines = figure.axes[0].get_lines()
    wanted = []
    for first, last in thirds:
      mean = (first + last) / 2
      when = f'rounds {first} to {last}' if last > first else f'round {first}'
      wanted += [(f'minibatches, {when}',
                  [[10, 2 * mean + 10.5], [20, 2 * mean + 20.5]]),
                 (f'held out, {when}',
                  [[0, mean], [10, mean + 10], [20, mean + 20]])]
    for line, (label, points) in zip(lines, wanted, strict=True):
      self.assertEqual(line.get_label(), label)
      np.testing.assert_allclose(line.get_xydata(), points)

  def test_searches_that_saw_no_number_are_left_out(self):
    rows = [{'round': 1, 'seed': s, 'step': step} | ({} if s else {'held_out_loss': 3 - step / 10})
            | ({} if s or not step else {'loss': step}) for s in (0, 1) for step in (0, 10)]
    figure = search.searches(rows)
    minibatches, held_out = figure.axes[0].get_lines()
    np.testing.assert_allclose(minibatches.get_xydata(), [[10, 10]])
    np.testing.assert_allclose(held_out.get_xydata(), [[0, 3], [10, 2]])


if __name__ == '__main__':
  absltest.main()
