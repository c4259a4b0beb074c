"""Figures are laid out so that labels can be read, and saved so that equal ones are equal files."""

import os
import pathlib
import tempfile

from absl.testing import absltest, parameterized
import matplotlib
from matplotlib.text import Text
import numpy as np
from PIL import Image

from hmm_jax.report import style


@style.styled
def figure(title='', caption=''):
  made = style.new(4, 3, title, caption)
  axes = made.subplots()
  axes.plot([1, 2], [0.1, 0.9])
  style.label_ends(axes, [(2, 0.9, 'one', 'red'), (2, 0.9, 'other', 'blue'),
                          (2, float('nan'), 'none', 'black')], 2)
  return made


class StyleTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  @parameterized.parameters(
      ([], []), ([0.5], [0.5]), ([0.2, 0.8], [0.2, 0.8]), ([0.5, 0.5], [0.45, 0.55]),
      ([0.9, 0.1, 0.1], [0.9, 0.05, 0.15]), ([0.52, 0.5, 0.48], [0.6, 0.5, 0.4]),
      ([0.95, 1, 1], [0.8, 0.9, 1]), ([0, 0.02], [0, 0.1]), ([0.5] * 13, np.arange(13) / 10))
  def test_places_move_apart_as_little_as_possible(self, wanted, found):
    np.testing.assert_allclose(style.apart(wanted, 0.1), found, atol=1e-9)

  def test_labels_do_not_overlap(self):
    made = figure()
    made.draw_without_rendering()
    one, other = (Text.get_window_extent(text) for text in made.axes[0].texts)  # Less the arrow.
    self.assertFalse(one.overlaps(other))

  def test_equal_figures_are_equal_files_in_both_kinds(self):
    for name in ('a', 'b'):
      style.save_pair(figure('title'), os.path.join(self.folder, 'plots', name))
    for kind in ('png', 'pdf'):
      first, second = (pathlib.Path(self.folder, 'plots', f'{name}.{kind}').read_bytes()
                       for name in 'ab')
      self.assertEqual(first, second)
    with Image.open(os.path.join(self.folder, 'plots', 'a.png')) as image:
      self.assertGreater(np.asarray(image).std(), 1)

  def test_dollars_and_brackets_are_no_formula(self):
    for text in ('$', '$x$', '$\\frac$', '<b>{x}%', 'two words ' * 40):
      figure(text, text).draw_without_rendering()

  def test_a_long_title_and_a_long_caption_stay_inside(self):
    made = figure('a method of a long name on a set of a long name ' * 3, 'what a band means ' * 9)
    made.draw_without_rendering()
    for text in (made._suptitle, made._supxlabel):
      self.assertIn('\n', text.get_text())
      self.assertLess(text.get_window_extent().x1, made.bbox.x1)

  def test_a_title_and_a_caption_take_nothing_from_the_axes(self):
    heights = []
    for text in ('', 'a method on a set', 'a method of a long name on a set of a long name'):
      made = figure(text, text)
      made.axes[0].set_ylabel('about as long as the axes are')
      made.draw_without_rendering()
      heights.append(made.axes[0].get_position().height * made.get_figheight())
      label = made.axes[0].yaxis.label.get_window_extent()
      for other in filter(None, (made._suptitle, made._supxlabel)):
        self.assertFalse(label.overlaps(other.get_window_extent()))
    self.assertLess(max(heights) - min(heights), 0.1)

  def test_a_title_is_broken_only_where_it_must_be(self):
    for text, lines in (('fedmerge · digits · dirichlet (alpha 0.1), 20 clients', 1),
                        ('i' * 90, 1), ('W' * 9 + ' W' * 30, 2)):
      made = style.new(4.9, 3, text)
      made.draw_without_rendering()
      self.assertLess(made._suptitle.get_window_extent().x1, made.bbox.x1)
      self.assertLen(made.get_suptitle().splitlines(), lines)

  def test_the_style_is_of_these_figures_only(self):
    before = dict(matplotlib.rcParams)
    figure()
    self.assertEqual(dict(matplotlib.rcParams), before)


if __name__ == '__main__':
  absltest.main()
