"""The lists are those of the records, show without JAX, and fold on any screen."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

import hmm_jax
from hmm_jax.decentralized import topology
from hmm_jax.experiment import catalog as catalogs
from hmm_jax.experiment import reference
from hmm_jax.report import catalog
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

PACKAGE = pathlib.Path(hmm_jax.__file__).parent
KNOWN = json.loads((PACKAGE / 'main' / 'catalog.json').read_text())
# Lists something as the command does, and says which modules that took.
PROGRAM = """
import sys
from hmm_jax.main.app import app
app(sys.argv[1:], standalone_mode=False)
print(*sys.modules, file=sys.stderr)
"""


def shown(*words):
  """Returns what is printed for a kind and a part of a name."""
  with contextlib.redirect_stdout(io.StringIO()) as out:
    catalog.show(KNOWN, *words, Screen())
  return out.getvalue()


class CatalogTest(parameterized.TestCase):

  def test_what_is_generated_is_of_today(self):
    for path, content in reference.files().items():
      self.assertEqual(path.read_text(), content, 'run: python -m hmm_jax.experiment.reference')

  def test_every_topology_is_told(self):
    self.assertSameElements(topology.ABOUT, topology.NAMES)

  @parameterized.parameters(*(kind for kind in KNOWN if ' ' not in kind))
  def test_a_list_has_every_name_and_sentence(self, kind):
    said = shown(kind, '')
    text = ' '.join(said.replace('│', ' ').split())
    for row in KNOWN[kind]:
      self.assertIn(row['name'], text)
      if 'paper' in row:
        self.assertIn(row['paper'][-8:], text)

  @parameterized.named_parameters(
      ('beginning', ('settings', 'feddle.'), ['feddle.atlas=50', 'a number from 1 to 100000'],
       ['local.lr']),
      ('part', ('settings', 'moment'), ['local.momentum=', 'fedopt.momentum='], ['local.lr']),
      ('operator', ('settings', 'ties.'), ['ties.density=0.2', '--set'], ['dare.density']),
      ('method', ('methods', 'fedmerge'), ['personal', 'needs own examples', '2026',
                                           'each client holds examples'], ['fedavg']),
      ('topology', ('topologies', 'base'), ['2305.11420', 'gossip.degree'], ['ring']))
  def test_names_are_found_by(self, words, expected, absent):
    said = shown(*words)
    for text in expected:
      self.assertIn(text, said)
    for text in absent:
      self.assertNotIn(text, said)

  @parameterized.parameters(
      ('settings', 'fedle.', 'feddle'), ('methods', 'fedavgg', 'fedavg'),
      ('methodz', '', 'methods'))
  def test_an_unknown_name_is_one_line_with_the_nearest(self, kind, part, meant):
    with self.assertRaisesRegex(InputError, rf'\Agot [^\n]*; expected .*did you mean {meant}\?\Z'):
      shown(kind, part)

  def test_settings_of_ones_own_record(self):
    path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()), 'mine.py')
    path.write_text('from hmm_jax import Method, Setting\n'
                    "METHOD = Method('mine', None, {'share': Setting(0.5, 'of all', above=0)})\n")
    self.assertEqual(catalogs.own_settings(f'{path}:METHOD'), [
        {'name': 'mine.share', 'default': '0.5', 'meaning': 'of all',
         'values': 'a number above 0'}])
    with self.assertRaisesRegex(InputError, 'expected a file'):
      catalogs.own_settings('nothing.py:METHOD')

  def test_a_list_takes_no_jax(self):
    for words in (['list'], ['list', 'settings', 'feddle.'], ['plan', '--help']):
      result = subprocess.run(
          [sys.executable, '-c', PROGRAM, *words], capture_output=True, text=True, check=True,
          env={**os.environ, 'PYTHONPATH': str(PACKAGE.parent)})
      self.assertNoCommonElements(result.stderr.split(), ['jax', 'numpy', 'matplotlib'])
      self.assertNotEmpty(result.stdout)


if __name__ == '__main__':
  absltest.main()
