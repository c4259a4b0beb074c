"""The page about a run is whole by itself, says what the folder says, and repeats the run."""

from html.parser import HTMLParser
import json
import os
import pathlib
import re
import shlex
import shutil
import tempfile

from absl.testing import absltest, parameterized
import pytest

from hmm_jax.experiment import config as configs
from hmm_jax.experiment import description, launch, pages, plots
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.main.train import read_command
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError, SaveError

NAME = "<script>alert('&')$x$"  # Not the name of a folder, but of a run that was handed on.
TINY = {'dataset': 'synthetic', 'synthetic.rows': 120, 'synthetic.shape': (6,), 'clients': 4,
        'synthetic.classes': 3, 'participation': 2, 'rounds': 2, 'eval_every': 1, 'seeds': 2,
        'partition.kind': 'iid', 'mlp.hidden': (4,), 'local.epochs': 1, 'mapper': 'map'}
VOID = {'meta', 'br', 'link', 'img', 'input', 'hr'}


class Page(HTMLParser):
  """What a page says: its texts, tags and attributes; complains of tags that are not closed."""

  def __init__(self, source):
    super().__init__()
    self.open, self.tags, self.attributes, self.texts = [], [], [], []
    self.pre = ''  # What is inside one, with its parts.
    self.feed(source)
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, tag

  def handle_data(self, data):
    self.texts.append((self.open[-1] if self.open else '', data))
    self.pre += data if 'pre' in self.open else ''

  def inside(self, tag):
    return [text for within, text in self.texts if within == tag]


@pytest.mark.draws
class PagesTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.trained = Workdir(os.path.join(cls.folder, 'trained'))
    launch.train(configs.configure(TINY), cls.trained, Screen(silent=True))
    cls.made = Page(pathlib.Path(cls.trained.file('report.html')).read_text(encoding='utf-8'))

  def setUp(self):
    super().setUp()
    self.workdir = Workdir(os.path.join(self.empty(), 'run'))
    shutil.copytree(self.trained.path, self.workdir.path)

  def empty(self):
    return self.enterContext(tempfile.TemporaryDirectory())

  def page(self, *workdirs):
    """Returns the page about some folders, of which this test's own may be changed."""
    path = self.workdir.file('page.html')
    pages.write(workdirs or [self.workdir], path)
    return Page(pathlib.Path(path).read_text(encoding='utf-8'))

  def change(self, **values):
    """Changes the saved config."""
    saved = self.workdir.read_json('config.json')
    self.workdir.write_json('config.json', saved | values)

  def test_a_run_leaves_it_and_the_same_folder_gives_the_same(self):
    made = pathlib.Path(self.trained.file('report.html')).read_text(encoding='utf-8')
    self.page(self.trained)
    self.assertEqual(
        pathlib.Path(self.workdir.file('page.html')).read_text(encoding='utf-8'), made)

  def test_it_is_well_formed_and_refers_to_nothing_outside(self):
    page = self.made
    for name, value in page.attributes:
      if name in ('src', 'href', 'xlink:href', 'data', 'action', 'srcset'):
        self.assertRegex(value, r'\A(#|data:)', name)
      self.assertNotRegex(value or '', r'url\((?!#)|https?://')
    self.assertNotRegex(''.join(page.inside('style')), r'@import|url\(')
    self.assertNotRegex(''.join(text for _, text in page.texts), 'https?://')
    ids = [value for name, value in page.attributes if name == 'id']
    self.assertLen(set(ids), len(ids))
    refers = {match for _, value in page.attributes for match in
              re.findall(r'\A#(.+)|url\(#(.+?)\)', value or '')}
    self.assertContainsSubset({one or other for one, other in refers}, ids)

  def test_the_numbers_are_those_of_the_summary(self):
    cells = self.made.inside('td')
    last = self.workdir.read_json('summary.json')['last']['global/test/accuracy']
    place = cells.index('accuracy, global model, test examples')
    self.assertEqual(cells[place + 1], f'{last["mean"]:.4f} ± {last["std"]:.4f}')

  def test_the_table_begins_with_the_accuracies_on_test_examples(self):
    names = [text for text in self.made.inside('td') if text.startswith(('accuracy', 'loss'))]
    self.assertEqual(names[0], 'accuracy, global model, test examples')
    self.assertLess(names.index('accuracy, mean over clients, validation examples'),
                    names.index('loss, global model, test examples'))
    self.assertIn('loss, mean over clients, training examples', names)

  def test_letters_of_all_figures_have_one_size(self):
    inches = [float(value.partition(': ')[2]) for name, value in self.made.attributes
              if name == 'style' and value.startswith('--inches')]
    points = [float(value.split()[2]) for name, value in self.made.attributes if name == 'viewbox']
    self.assertLen(inches, len(self.made.inside('figcaption')))
    for wide, one in zip(inches, points, strict=True):
      self.assertAlmostEqual(72 * wide, one, delta=1)

  def test_it_says_what_the_server_has_and_who_is_corrupted(self):
    self.assertNotIn('corruption', self.made.inside('dt'))
    self.change(**{'server.size': 50, 'corrupt.kind': 'random', 'corrupt.clients': 0.25})
    said = self.page().inside('dd')
    self.assertIn('50 examples of its own', said)
    self.assertIn('25% of the clients: random, at a rate of 0.5', said)

  def test_a_setting_that_names_a_method_lists_not_all_methods(self):
    self.change(algorithm='scaffold')
    cells = self.page().inside('td')
    self.assertEqual(cells[cells.index('algorithm'):][:4],
                     ['algorithm', 'scaffold', 'fedavg', 'the method'])

  def test_what_hovering_shows_is_what_was_measured(self):
    charts = [json.loads(text) for text in self.made.inside('script') if text.startswith('{')]
    chart = charts[0]
    line = next(one for one in chart['lines'] if one['label'] == 'global model')
    rows = self.workdir.read_metrics()
    for number, mean in zip(line['rounds'], line['mean'], strict=True):
      values = [row['global/test/accuracy'] for row in rows if row['round'] == number]
      self.assertAlmostEqual(mean, sum(values) / 2, places=4)
    left, right, top, bottom, low, high = chart['frame']
    self.assertTrue(left < right and top < bottom and low <= 1 and high >= 2)

  def test_whatever_a_run_is_called_is_escaped(self):
    self.change(name=NAME)
    source = self.page()
    self.assertEqual(source.tags.count('script'), self.made.tags.count('script'))
    self.assertIn(NAME, ''.join(source.inside('h1')))

  def test_the_command_repeats_the_settings(self):
    self.change(name='a "b" c', variants=['x local.lr=0.5', "y dmm.inputs=none"], seed=7,
                data_dir='/a b', algorithm='scaffold')
    program, run, *words = shlex.split(self.page().pre)
    self.assertEqual((program, run), ('hmm_jax', 'run'))
    config, rest = read_command(['hmm_jax run', *words])
    saved = configs.complete(self.workdir.read_json('config.json'))
    self.assertEqual(configs.flat(config), configs.flat(saved))
    self.assertEqual(rest[1:], [f'--workdir={self.workdir.path}-again'])

  def test_it_needs_no_data_nor_the_record_of_a_method(self):
    self.change(dataset='npz:/nowhere/own.npz', algorithm='/nowhere/own.py:MINE')
    heading = ''.join(self.page().inside('h1'))
    self.assertEqual(heading, 'MINE · own.npz · iid, 4 clients')

  def test_a_run_of_before_has_no_partition_but_all_else(self):
    os.remove(self.workdir.file('partition.csv'))
    captions = self.page().inside('figcaption')
    partition = 'training examples of each client, by class'
    self.assertNotIn(partition, captions)
    self.assertIn("the clients' own scores", captions)
    self.assertIn(partition, self.made.inside('figcaption'))

  @parameterized.parameters(([0.0, 0.0], False), ([0.0, 2.0], True))
  def test_delays_are_drawn_if_there_are_any(self, delays, drawn):
    self.workdir.table('anchors').write([
        {'round': number, 'seed': 0, 'client': 0, 'coefficient': 0.5, 'delay': delay}
        for number, delay in enumerate(delays, 1)])
    made = plots.of_clients(self.workdir)
    self.assertIn('coefficients', made)
    self.assertEqual('staleness' in made, drawn)

  def test_an_unfinished_run_is_shown_as_far_as_it_is(self):
    os.remove(self.workdir.file('summary.json'))
    self.change(rounds=9)
    self.assertIn('Unfinished: round 2 of 9.', self.page().inside('p'))

  def test_several_runs_have_sections_and_one_common_figure(self):
    page = self.page(self.workdir, self.trained)
    self.assertEqual([value for name, value in page.attributes if name == 'id'
                      and value in ('r0', 'r1')], ['r0', 'r1'])
    self.assertEqual(page.inside('a'), ['run', 'trained'])  # Both are called fedavg.
    common = json.loads(next(t for t in page.inside('script') if t.startswith('{')))
    self.assertEqual([line['label'] for line in common['lines']], ['run', 'trained'])

  @parameterized.parameters('config.json', 'summary.json', 'metrics.csv', 'clients.csv',
                            'partition.csv')
  def test_damage_is_told_before_anything_is_written(self, name):
    pathlib.Path(self.workdir.file(name)).write_text('{"a": \n1,x,2\n3,"\n')
    os.remove(self.workdir.file('report.html'))
    shutil.rmtree(self.workdir.file('plots'))
    with self.assertRaisesRegex(InputError, f'{name}|a run without'):
      pages.redraw([self.workdir.path], '')
    self.assertNoCommonElements(os.listdir(self.workdir.path), ['report.html', 'plots'])

  def test_folders_without_a_run_are_refused(self):
    empty = self.empty()
    for folders in ([empty], ['/nowhere'], [self.workdir.path, empty]):
      with self.assertRaisesRegex(InputError, 'expected the folder of a run'):
        pages.redraw(folders, os.path.join(empty, 'page.html'))
    with self.assertRaisesRegex(InputError, 'got /nowhere; expected the folder of a run'):
      pages.redraw(['/nowhere'], '')
    for out in ('/nowhere/page.html', empty):
      with self.assertRaisesRegex(InputError, f'got out={out}'):
        pages.redraw([self.workdir.path], out)
    self.assertEmpty(os.listdir(empty))

  def test_redrawing_makes_all_pictures_again(self):
    shutil.rmtree(self.workdir.file('plots'))
    path, lines = pages.redraw([self.workdir.path], '')
    self.assertEqual((path, lines), (self.workdir.file('report.html'), []))
    self.assertCountEqual(os.listdir(self.workdir.file('plots')),
                          os.listdir(self.trained.file('plots')))

  def test_where_plots_cannot_be_written_the_page_goes_elsewhere(self):
    shutil.rmtree(self.workdir.file('plots'))
    pathlib.Path(self.workdir.file('plots')).touch()
    out = os.path.join(self.empty(), 'page.html')
    path, lines = pages.redraw([self.workdir.path], out)
    self.assertTrue(os.path.exists(path))
    self.assertLen(lines, 1)


class PainterTest(absltest.TestCase):

  def test_it_draws_for_a_small_share_of_the_time(self):
    clock, drawn = [0.0], []

    def draw():
      drawn.append(clock[0])
      clock[0] += 2.0

    painter = plots.Painter(draw, clock=lambda: clock[0])
    while clock[0] < 1000:
      clock[0] += 1
      painter()
    self.assertEqual(drawn[0], plots.FIRST / plots.SHARE)  # Its cost is not yet known.
    self.assertBetween(2 * len(drawn) / 1000, 0.5 * plots.SHARE, plots.SHARE)

  def test_a_picture_that_cannot_be_saved_stops_no_training(self):
    def draw():
      raise SaveError('full')

    clock = iter([0.0, 1000.0, 1001.0])
    plots.Painter(draw, clock=lambda: next(clock))()


class DescriptionTest(parameterized.TestCase):

  @parameterized.parameters(
      ({}, 'fedavg · digits · dirichlet (alpha 0.1), 20 clients'),
      ({'corrupt.kind': 'random', 'corrupt.clients': 0.5},
       'fedavg · digits · dirichlet (alpha 0.1), 20 clients, 50% corrupted'),
      ({'corrupt.clients': 0.5}, 'fedavg · digits · dirichlet (alpha 0.1), 20 clients'),
      ({'partition.min_size': 3},
       'fedavg · digits · dirichlet (alpha 0.1, min size 3), 20 clients'),
      ({'name': 'mine', 'algorithm': 'moon', 'partition.kind': 'shards', 'clients': 5},
       'mine (moon) · digits · shards (shards 2), 5 clients'),
      ({'dataset': 'npz:/a/b.npz', 'partition.kind': 'natural', 'clients': 0},
       'fedavg · b.npz · natural'),
      ({'dataset': 'images:/a/pets', 'partition.kind': 'natural', 'clients': 0},
       'fedavg · pets · natural'),
      ({'dataset': 'hf:user/name', 'partition.kind': 'natural', 'clients': 0},
       'fedavg · hf:user/name · natural'))
  def test_the_title_says_method_data_and_partition(self, changes, title):
    config = configs.flat(configs.get_config()) | changes
    self.assertEqual(description.title(config), title)


if __name__ == '__main__':
  absltest.main()
