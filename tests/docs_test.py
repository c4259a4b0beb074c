"""The examples of the docs work as they stand."""

import os
import pathlib
import re
import tempfile

from absl.testing import absltest, parameterized
import pytest
from reference import pages

import hmm_jax as hmm
from hmm_jax.check import __main__ as check
from hmm_jax.experiment import config as configs
from hmm_jax.types import InputError

DOCS = pathlib.Path(__file__).parent.parent / 'docs'
TINY = {'clients': 6, 'participation': 3, 'rounds': 2, 'eval_every': 1, 'seeds': 1,
        'partition.alpha': 1.0, 'mlp.hidden': (4,), 'local.epochs': 1}
WRONG = {
    'a mean replaced by a sum': (
        '[cut:len(x) - cut].mean(axis=0)', '[cut:len(x) - cut].sum(axis=0)',
        'clients that learn nothing change nothing'),
    'a key that is not folded with the id': (
        'train(state.variables, federation.examples, clients, (), local_key)',
        'jax.vmap(local, (None, None, 0, None, None))(\n'
        '        state.variables, federation.examples, clients, (), local_key)',
        'clients draw for themselves'),
    'a state of changing shape': (
        'TrimmedState(state.round + 1, trimmed_mean(models, share))',
        'TrimmedState(state.round + 1, models)',
        'the state keeps its structure, shapes and types'),
    'stacks that are of no client': (
        'traffic=Traffic(', "stacks=('variables',), traffic=Traffic(", 'stacks hold all clients'),
    'stacks that are not there': (
        'traffic=Traffic(', "stacks=('personal',), traffic=Traffic(", 'stacks hold all clients'),
}


# The files of the pages in docs/extend.
FILES = {'method': 'trimmed.py', 'network': 'wide.py', 'operator': 'median.py',
         'source': 'moons.py'}


def example(page: str) -> str:
  """Returns the complete example of a page."""
  return pages.file(f'extend/{page}.md', FILES[page])


class DocsTest(parameterized.TestCase):

  def folder(self) -> str:
    made = tempfile.TemporaryDirectory()
    self.addCleanup(made.cleanup)
    return made.name

  def save(self, name: str, text: str) -> str:
    """Saves a file of somebody's own; returns its path."""
    path = pathlib.Path(self.folder(), name)
    path.write_text(text)
    return str(path)

  def run_with(self, changes: dict) -> hmm.Run:
    return hmm.run(hmm.config(TINY | changes), self.folder(), silent=True)

  @parameterized.named_parameters(
      ('method', 'method', 'trimmed', 'algorithm', 'METHOD', {'trimmed.share': 0.3}),
      ('network', 'network', 'wide', 'model', 'NETWORK', {'wide.width': 8, 'wide.depth': 1}),
      ('source', 'source', 'moons', 'dataset', 'SOURCE',
       {'moons.examples': 300, 'partition.kind': 'domain'}))
  def test_a_file_is_used_as_if_built_in(self, page, name, key, record, changes):
    path = self.save(f'{name}.py', example(page))
    run = self.run_with({key: f'{path}:{record}', **changes})
    self.assertLen(run.metrics, 2)
    self.assertEqual(configs.flat(run.config)[key], f'{path}:{record}')
    # A workdir remembers where the record came from; without the file it can't go on.
    os.remove(path)
    configs.registry._file.cache_clear()
    with self.assertRaisesRegex(InputError, f'got {key}={path}:{record}; expected a file'):
      hmm.Run.load(run.folder.path)

  def test_a_setting_of_a_file_is_checked(self):
    path = self.save('trimmed.py', example('method'))
    for value, wanted in ((0.7, 'got trimmed.share=0.7; expected'), ('x', 'got trimmed.share=')):
      with self.assertRaisesRegex(InputError, wanted):
        hmm.config({'algorithm': f'{path}:METHOD', 'trimmed.share': value})

  def test_an_operator_of_ones_own_merges_a_run(self):
    path = self.save('median.py', example('operator'))
    run = self.run_with({'algorithm': 'merging', 'merging.method': f'{path}:OPERATOR',
                         'merging.settings': ('temper=0.5',), 'partition.validation': 0.2})
    self.assertIn('global', run.models())
    one = run.folder.path
    merged = hmm.merge(f'{path}:OPERATOR', [one, one], settings={'temper': 0.5})
    self.assertIn('params/head/bias', merged)

  def test_a_partitioner_of_ones_own(self):
    path = self.save('halves.py', pages.file('extend/source.md', 'halves.py'))
    run = self.run_with({'partition.kind': f'{path}:PARTITIONER', 'runs.shift': 7})
    self.assertLen(run.federation.clients.id, 6)

  @pytest.mark.slow
  def test_check_passes_a_right_method(self):
    path = self.save('trimmed.py', example('method'))
    for law, holds in check.laws_of(f'{path}:METHOD').items():
      self.assertEqual(check.tried(holds), ('yes', ''), law)

  def test_check_passes_a_right_operator(self):
    path = self.save('median.py', example('operator'))
    for law, holds in check.laws_of(f'{path}:OPERATOR').items():
      self.assertEqual(check.tried(holds), ('yes', ''), law)

  @parameterized.named_parameters(
      *((f'{i}_{name.replace(" ", "_")}', *case) for i, (name, case) in enumerate(WRONG.items())))
  def test_check_names_the_law_that_is_broken(self, right, wrong, law):
    text = example('method')
    self.assertIn(right, text)
    path = self.save('wrong.py', text.replace(right, wrong))
    holds, why = check.tried(check.laws_of(f'{path}:METHOD')[law])
    self.assertEqual(holds, 'no')
    self.assertNotEmpty(why)

  def test_check_refuses_what_is_no_record(self):
    path = self.save('trimmed.py', example('method'))
    for name in ('nosuch', f'{path}:NOTHING', '/nowhere/x.py:METHOD', f'{path}:build_trimmed'):
      with self.assertRaisesRegex(InputError, re.escape(f'{name}; expected')):
        check.laws_of(name)

  def test_the_face_is_what_it_says(self):
    self.assertBetween(len(dir(hmm)), 35, 60)
    for name in dir(hmm):
      self.assertIsNotNone(getattr(hmm, name), name)
    with self.assertRaises(AttributeError):
      hmm.nothing  # noqa: B018


if __name__ == '__main__':
  absltest.main()
