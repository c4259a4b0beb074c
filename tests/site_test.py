"""The documentation site: strictly built, from the records, and every block of it is executed."""

import concurrent.futures
import contextlib
import html.parser
import importlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized
import pytest
from reference import pages

from hmm_jax.algorithms import FILES

PAGES = pages.pages()
sys.path.insert(0, str(pages.ROOT / 'experiments'))
results = importlib.import_module('results')


# Figures that no record has: of the first run, and of a training that was repeated.
UNRECORDED = {'0.9675 ± 0.0058', '0.9666 ± 0.0048', '0.9684 ± 0.0043', '0.2930 ± 0.0022',
              '0.2338 ± 0.1047', '0.9568 ± 0.0162', '0.9647 ± 0.0064', '0.9580 ± 0.0127'}


def recorded() -> set[str]:
  """Returns the mean ± std of every metric of every recorded run, last and selected."""
  tables = []
  for study in results.studies():
    for named in results.load(study).values():
      for kept in named.values():
        summary = results.summary(kept)
        tables += [summary['last'], summary['before_finish'], summary['selected_on_validation'],
                   *results.ladder(kept).values()]
  return {f'{value["mean"]:.4f} ± {value["std"]:.4f}' for table in tables if table
          for value in table.values()}


class BlocksTest(parameterized.TestCase):

  def test_every_block_is_of_a_known_kind(self):
    for name, page in PAGES.items():
      for block in pages.blocks(page):
        self.assertIn(block.kind, pages.KINDS, f'{name}: {block.text}')
      # A fence that is not read as one would be skipped.
      self.assertEqual(page.count('```'), 2 * len(pages.blocks(page)), name)

  def test_blocks_are_read(self):
    page = '```python title="a.py"\nx = 1\n```\n- y\n\n  ```bash\n  ls\n  ```\n'
    self.assertEqual(pages.blocks(page), [pages.Block('python', 'a.py', 'x = 1\n'),
                                          pages.Block('bash', '', 'ls\n')])

  def test_every_method_has_a_page_that_runs_it(self):
    for file in FILES:
      page = PAGES[f'methods/{file}.md']
      run = ' '.join(block.text for block in pages.blocks(page) if block.kind == 'bash')
      self.assertRegex(run, r'--config\.algorithm=\w', file)
      for mark in ('method:', f'formula:{file} ', 'settings:'):
        self.assertIn('{{ ' + mark, page, file)


  def test_every_figure_is_recorded(self):
    known = recorded() | UNRECORDED
    for name, page in PAGES.items():
      self.assertEqual(set(re.findall(r'\d\.\d{4} ± \d\.\d{4}', page)) - known, set(), name)

  def test_every_command_of_a_figure_names_a_record(self):
    for name, page in PAGES.items():
      for study, run in re.findall(r'`python experiments/results\.py (\w+) ?([\w.]*)`', page):
        self.assertIn(run, ['', *results.load(study)], name)


@pytest.mark.slow
class ExecutedTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    stack = contextlib.ExitStack()
    cls.addClassCleanup(stack.close)
    cls.executor = stack.enter_context(pages.executor())
    pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(os.cpu_count()))
    stack.callback(pool.shutdown, cancel_futures=True)  # Of pages whose test is not asked for.
    cls.failures = {
        name: pool.submit(cls.executor.execute, page, drawn=name in pages.DRAWN)
        for name, page in PAGES.items()}

  @parameterized.parameters(*PAGES)
  def test_every_block_runs(self, name):
    self.assertEqual(self.failures[name].result(), '')

  def test_a_block_that_fails_is_told(self):
    for page in ('```bash\nfalse\n```\n', '```bash\nhmm_jax run --config.rouns=1\n```\n',
                 '```python\n1 / 0\n```\n', '```bash\npython -m hmm_jax.nothing\n```\n'):
      self.assertIn('exit code', self.executor.execute(page), page)


class Links(html.parser.HTMLParser):
  """Collects what a page fetches, where it links to, and its anchors."""

  def __init__(self, text: str):
    super().__init__()
    self.fetched, self.linked, self.anchors = set(), set(), set()
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    given = dict(attributes)
    self.anchors |= {given.get('id'), given.get('name')}
    if tag in ('script', 'img', 'link', 'source', 'iframe'):
      self.fetched |= {given.get('src') or given.get('href')}
    elif tag == 'a':
      self.linked |= {given.get('href')}


@pytest.mark.slow
class SiteTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    made = tempfile.TemporaryDirectory()
    cls.addClassCleanup(made.cleanup)
    cls.folder = pathlib.Path(made.name)
    cls.built = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', made.name],
        cwd=pages.ROOT, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(pages.ROOT)})
    cls.pages = {path: Links(path.read_text()) for path in cls.folder.rglob('*.html')}

  def test_it_is_built_strictly(self):
    self.assertEqual(self.built.returncode, 0, self.built.stderr)
    self.assertGreaterEqual(len(self.pages), len(PAGES))

  def test_nothing_is_fetched_from_elsewhere(self):
    for path, page in self.pages.items():
      for address in filter(None, page.fetched):
        self.assertNotRegex(address, r'^(\w+:)?//', path)
    for sheet in self.folder.rglob('*.css'):
      self.assertNotRegex(sheet.read_text(), r'url\([\'"]?(https?:)?//', sheet)

  def test_every_link_leads_somewhere(self):
    for path, page in self.pages.items():
      for link in filter(None, page.linked):
        if re.match(r'https://arxiv\.org/abs/\d{4}\.\d{4,5}$', link):
          continue
        self.assertNotRegex(link, r'^\w+:', path)
        place, _, anchor = link.partition('#')
        # The page for what is not found stands anywhere: its links begin at the root.
        base = self.folder if place.startswith('/') else path.parent
        found = base / place.lstrip('/') if place else path
        found = found / 'index.html' if found.is_dir() else found
        self.assertTrue(found.exists(), f'{path}: {link}')
        if anchor and found.suffix == '.html':
          self.assertIn(anchor, self.pages[found.resolve()].anchors, f'{path}: {link}')

  def test_no_mark_is_left(self):
    for path in self.pages:
      self.assertNotRegex(path.read_text(), r'\{\{ *\w+(:\w+)? *\}\}', path)


if __name__ == '__main__':
  absltest.main()
