"""Comparisons: paired differences, what is said of them, and the files they leave."""

import csv
import os
import pathlib
import tempfile

from absl.testing import absltest, parameterized
import numpy as np
from scipy import stats

from hmm_jax.report.comparison import figure, numbers, output, table
from hmm_jax.report.comparison.numbers import Entry, OneSeed
from hmm_jax.types import InputError

METRIC = 'global/test/accuracy'
CRITERION = 'global/validation/accuracy'


def entry(name, finals, *, partitions=None, best=None, validation=(0.5,), merged=None, **more):
  """Makes a run of two evaluations, whose last test accuracies are given by seed."""
  seeds = {}
  for seed, final in enumerate(finals):
    rows = [{'round': r, 'seed': seed, 'bytes': 2e6 * r, 'seconds': float(r), METRIC: value,
             CRITERION: validation[seed % len(validation)]}
            for r, value in ((1, final / 2), (2, final))]
    if merged is not None:
      rows.append(rows[-1] | {METRIC: merged})
    chosen = rows[-1] if best is None else rows[-1] | {METRIC: best[seed]}
    partition = partitions[seed] if partitions else 0
    seeds[partition, seed] = OneSeed(rows, chosen, [final, final / 2], merged is not None)
  return Entry(name, seeds, CRITERION, 2)._replace(**more)


class NumbersTest(parameterized.TestCase):

  def test_differences_are_paired_over_common_seeds(self):
    a, b = np.array([0.5, 0.6, 0.9, 0.1]), np.array([0.6, 0.55, 0.95])
    found = numbers.compare([entry('a', a), entry('b', b)], METRIC)[1].difference
    d = b - a[:3]
    low, high = stats.t.interval(0.95, 2, d.mean(), stats.sem(d))
    np.testing.assert_allclose(found[:3], (d.mean(), low, high))
    self.assertEqual(found[3:], (3, 2))

  def test_one_common_seed_has_no_interval_and_none_no_difference(self):
    first, one = entry('a', [0.5, 0.6, 0.7]), entry('b', [0.75])
    other = entry('c', [0.5, 0.6], partitions=[1, 1])  # Seeds of another partition are others.
    _, b, c = numbers.compare([first, one, other], METRIC)
    self.assertEqual(b.difference, numbers.Difference(0.25, None, None, 1, 1))
    self.assertIsNone(c.difference)
    self.assertIsNone(b.last.std)

  def test_selected_is_the_test_metric_of_the_round_chosen_on_validation(self):
    line, = numbers.compare([entry('a', [0.5, 0.7], best=[0.2, 0.4])], METRIC)
    np.testing.assert_allclose(line.selected, (0.3, np.std([0.2, 0.4], ddof=1)))
    np.testing.assert_allclose(line.last.mean, 0.6)
    none = entry('a', [0.5])
    seed = none.seeds[0, 0]._replace(selected=None)
    self.assertIsNone(numbers.compare([none._replace(seeds={(0, 0): seed})], METRIC)[0].selected)

  def test_the_choice_is_by_validation_and_never_by_test(self):
    good = entry('good', [0.5], validation=(0.9,))
    lucky = entry('lucky', [0.99], validation=(0.8,))
    lines = numbers.compare([lucky, good], METRIC)
    self.assertEqual(numbers.chosen(lines).entry.name, 'good')
    self.assertEqual([line.entry.name for line in numbers.ranked(lines)], ['good', 'lucky'])
    loss = [line._replace(entry=line.entry._replace(criterion='global/validation/loss'))
            for line in lines]
    self.assertEqual(numbers.chosen(loss).entry.name, 'lucky')
    self.assertIsNone(numbers.chosen([lines[0], loss[1]]))
    self.assertIsNone(numbers.chosen([lines[0], lines[1]._replace(validation=None)]))

  def test_the_metric_is_one_that_all_runs_have(self):
    both = {**entry('a', [0.5]).seeds[0, 0].rows[-1], 'clients/test/accuracy': 0.1}
    own = {name: value for name, value in both.items() if name != METRIC}
    a, b = (Entry(name, {(0, 0): OneSeed([row], None)}) for name, row in (('a', both), ('b', own)))
    self.assertEqual(numbers.choose_metric([a]), METRIC)
    self.assertEqual(numbers.choose_metric([a, b]), 'clients/test/accuracy')
    self.assertEqual(numbers.choose_metric([a, b], CRITERION), CRITERION)
    for wanted in (METRIC, 'bytes', 'x'):
      with self.assertRaisesRegex(InputError, f'got metric={wanted}, .*clients/test/accuracy'):
        numbers.choose_metric([a, b], wanted)
    with self.assertRaisesRegex(InputError, 'which b lacks'):
      numbers.choose_metric([a, b], METRIC)

  @parameterized.named_parameters(
      ('one', [[0]], 'One seed a run'),
      ('shared', [[0, 0, 0]], 'over 3 seeds, which share one partition .* left out'),
      ('own', [[0, 1], [0, 1]], 'over 2 seeds and 2 partitions'),
      ('both', [[0, 1], [0, 0, 0]], 'over 2 to 3 seeds; .* but not where .*: run1'),
      ('beside_one', [[0], [0, 0]], 'over 2 seeds, which share one'))
  def test_says_what_the_spread_leaves_out(self, partitions, expected):
    entries = [entry(f'run{i}', [0.5] * len(p), partitions=p) for i, p in enumerate(partitions)]
    self.assertRegex(numbers.about_spread(entries), expected)

  def test_says_which_runs_are_not_at_their_end(self):
    lines = numbers.compare([entry('a', [0.5]), entry('b', [0.5], rounds=10)], METRIC)
    self.assertIn('Not at the end: b (round 2 of 10).', numbers.notes(lines))


class OutputTest(parameterized.TestCase):

  def test_leaves_a_table_in_three_formats_and_a_figure_in_two(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    entries = [entry('a_b', [0.5, 0.6, 0.7], merged=0.4), entry('50%', [0.75])]
    output.save(entries, METRIC, 'round', folder)
    with open(os.path.join(folder, 'table.csv'), newline='') as file:
      first, second = csv.DictReader(file)
    self.assertEqual((first['run'], second['run']), ('a_b', '50%'))
    self.assertAlmostEqual(float(first['last_mean']), 0.4)
    self.assertEqual((first['difference_last_mean'], second['last_std']), ('', ''))
    self.assertAlmostEqual(float(second['difference_last_mean']), 0.35)
    read = lambda name: pathlib.Path(folder, name).read_text()
    self.assertIn('| 50% | 1 | 0.7500 |', read('table.md'))
    self.assertIn(r'a\_b & 3 & 0.4000 $\pm$ 0.0000', read('table.tex'))
    self.assertRegex(read('table.tex'), r'\n  50\\% & 1 & .* & 4 & 2.0 \\\\\n')
    for name, magic in (('curves.png', b'\x89PNG'), ('curves.pdf', b'%PDF')):
      self.assertTrue(pathlib.Path(folder, name).read_bytes().startswith(magic))

  def test_latex_shows_every_character(self):
    self.assertEqual(table.escaped('a_b%c&d#e$f{g}~^\\−'),
                     r'a\_b\%c\&d\#e\$f\{g\}\textasciitilde{}\textasciicircum{}'
                     r'\textbackslash{}$-$')

  @parameterized.parameters((999, '999', 'bytes'), (2e6, '2', 'MB'), (3.5e9, '3.5', 'GB'))
  def test_bytes_are_in_a_readable_unit(self, size, shown, name):
    line, = numbers.compare([entry('a', [0.5])], METRIC)
    line = line._replace(bytes=size)
    self.assertIn(f'{name} per seed', table.header([line]))
    self.assertEqual(table.cells([line])[0][-2], shown)


class CaptionTest(parameterized.TestCase):

  def test_says_what_lines_bands_and_marks_are(self):
    many, few, one = (entry(f'of{count}', [0.5] * count) for count in (3, 2, 1))
    said = figure.caption([one, many, few], METRIC)
    self.assertStartsWith(said, 'mean ± std over 3 seeds (of3); mean (bold) and both of 2 seeds '
                          '(thin) (of2); one seed (of1). ± is')
    self.assertIn('share one partition', said)
    self.assertNotIn('merge', said)
    self.assertStartsWith(figure.caption([one], METRIC), 'one seed. Boxes: quartiles')
    self.assertIn('after the final merge', figure.caption([entry('x', [0.5], merged=0.1)], METRIC))

  def test_the_title_says_the_data_that_all_share(self):
    runs = [entry(name, [0.5], about=about) for name, about in zip('abc', ['iris', 'iris', 'wine'])]
    self.assertEqual(figure.title(runs[:2], METRIC), 'test accuracy of the global model · iris')
    self.assertEqual(figure.title(runs, METRIC), 'test accuracy of the global model')

  def test_metrics_are_named_in_words(self):
    self.assertEqual(figure.in_words(METRIC), 'test accuracy of the global model')
    self.assertEqual(figure.in_words('train/loss'), 'train/loss')

  @parameterized.parameters((1, 1, 0), (2, 3, 0), (3, 1, 1))
  def test_few_seeds_are_lines_and_many_a_band(self, count, lines, bands):
    axes, *_ = figure.drawn([entry('a', [0.5] * count)], METRIC, 'round').axes
    self.assertEqual((len(axes.lines), len(axes.collections)), (lines, bands))

  def test_a_final_merge_is_a_mark_and_no_spike(self):
    run = entry('a', [0.5] * 3, merged=0.1)
    for seed in run.seeds.values():
      seed.rows[-1]['bytes'] += 1e6  # Which the merge has sent.
    rounds, sent, _ = figure.drawn([run], METRIC, 'round').axes
    for axes, curve, mark in ((rounds, [[1, 0.25], [2, 0.5]], [2, 0.1]),
                              (sent, [[2, 0.25], [4, 0.5]], [5, 0.1])):
      np.testing.assert_allclose(axes.lines[0].get_xydata(), curve)
      np.testing.assert_allclose(axes.lines[1].get_xydata(), [mark])
    axes, *_ = figure.drawn([entry('a', [0.5], merged=0.5)], METRIC, 'round').axes
    self.assertLen(axes.lines, 1)  # A merge that changes nothing has no mark.

  def test_every_line_has_its_name_at_its_end(self):
    runs = [entry('one', [0.5, 0.6, 0.7]), entry('other', [0.75]), entry('long ' * 20, [0.1])]
    made = figure.drawn(runs, METRIC, 'round')
    rounds, sent, boxes = made.axes
    for axes in (rounds, sent):
      self.assertEqual([text.get_text()[:12] for text in axes.texts],
                       ['one  0.600', 'other  0.750', 'long long lo'])
    self.assertEmpty(made.legends)
    self.assertEqual(rounds.get_ylim(), sent.get_ylim())
    self.assertEqual(sent.get_xlabel(), 'MB sent by clients and server, of one seed')
    self.assertLen(boxes.get_yticklabels(), 3)


if __name__ == '__main__':
  absltest.main()
