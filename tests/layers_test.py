"""Rooms import each other in one direction, and outside packages by their doors only."""

import ast
from collections.abc import Iterator
import graphlib
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

from absl.testing import absltest, parameterized

import hmm_jax

PACKAGE = pathlib.Path(hmm_jax.__file__).parent

# Rooms that stand lower import none of the higher ones: an order that the imports must allow.
BELOW = ('data', 'tasks', 'models', 'merging', 'client', 'decentralized', 'server', 'algorithms',
         'report', 'experiment', 'merge', 'check')
# Files of a folder that know nothing of each other, and what they share.
STRANGERS = {'algorithms': ('algorithms/parts', 'algorithms/engines'), 'data/sources': ()}
# Who may import what: files, or rooms.
DOORS = {
    'flax': ('models', 'check/toys', 'check/tasks'),
    'orbax': ('experiment/checkpoint',),
    'tensorflow_datasets': ('data/sources/tfds',),
    'filelock': ('experiment/workdir',),
    'jinja2': ('report/page',),
    'markupsafe': ('report/page',),
    'matplotlib': ('report/plots', 'report/style', 'report/comparison/figure'),
    'safetensors': ('models/files',),
    'networkx': ('decentralized/undirected',),
    'ml_collections': ('experiment', 'merge', 'main'),
    'rich': ('report/screen',),
    'sklearn': ('data', 'tasks/metrics'),
    'scipy': ('report/comparison/numbers', 'report/style'),
    'PIL': ('data',),
    'datasets': ('data/sources/hf',),
    'tensorboardX': ('report/trackers/tensorboard',),
    'wandb': ('report/trackers/wandb',),
    'mlflow': ('report/trackers/mlflow',),
    'trackio': ('report/trackers/trackio',),
    'typer': ('main',),
    'tensorflow': (),
    'torch': (),
}
LAZY = ('tensorflow_datasets',)


class Import(NamedTuple):
  """One import statement: `module` is a dotted path without `hmm_jax.`."""

  module: str
  own: bool  # of this package
  lazy: bool  # inside a function


def imports(source: str) -> Iterator[Import]:
  """Yields what a module imports, with a name of the package resolved to a file."""

  def visit(node, lazy):
    for child in ast.iter_child_nodes(node):
      inner = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
      if isinstance(child, ast.Import):
        yield from (named(alias.name, inner) for alias in child.names)
      elif isinstance(child, ast.ImportFrom):
        # `from hmm_jax.client import local` names a file, and so may `from x import y`.
        yield from (named(f'{child.module}.{alias.name}', inner) for alias in child.names)
        if child.level:
          yield Import('a relative import', own=True, lazy=inner)
      else:
        yield from visit(child, inner)

  def named(path, lazy):
    own = path.split('.')[0] == 'hmm_jax'
    return Import(path.removeprefix('hmm_jax.'), own, lazy)

  return visit(ast.parse(source), False)


def sources() -> dict[str, str]:
  """Returns {'client/local': source, ...}, without the registries and docstring files."""
  files = {path.relative_to(PACKAGE).with_suffix('').as_posix(): path.read_text()
           for path in sorted(PACKAGE.rglob('*.py'))}
  return {name: text for name, text in files.items() if name.split('/')[-1] != '__init__'}


def room(name: str) -> str:
  return name.replace('/', '.').split('.')[0]


def complaints(name: str, source: str) -> list[str]:
  """Returns what is wrong with the imports of the file `name`, such as 'client/local'."""
  wrong, here = [], room(name)
  for module, own, lazy in imports(source):
    path, there, top = module.replace('.', '/'), room(module), module.split('.')[0]
    folder = name.rpartition('/')[0]
    if own and here in BELOW and there in BELOW and BELOW.index(there) > BELOW.index(here):
      wrong.append(f'{name} imports {module} of a higher room')
    elif own and folder in STRANGERS and path.startswith(f'{folder}/') and not any(
        path.startswith(shared) for shared in STRANGERS[folder]):
      wrong.append(f'{name} imports its sibling {module}')
    elif own and module == 'a relative import':
      wrong.append(f'{name} has a relative import')
    elif not own and not any(
        name == door or name.startswith(f'{door}/') for door in DOORS.get(top, (here, name))):
      wrong.append(f'{name} imports {top}')
    elif not own and top in LAZY and not lazy:
      wrong.append(f'{name} imports {top} before it needs it')
  return wrong


class LayersTest(parameterized.TestCase):

  def test_every_file_keeps_to_its_room(self):
    self.assertGreater(len(sources()), 100)
    self.assertEqual([c for name, text in sources().items() for c in complaints(name, text)], [])

  def test_rooms_have_an_order(self):
    graph = {}
    for name, text in sources().items():
      graph.setdefault(room(name), set()).update(
          room(module) for module, own, _ in imports(text)
          if own and room(module) not in (room(name), 'hmm_jax'))
    order = [*graphlib.TopologicalSorter(graph).static_order()]  # Raises where there is a circle.
    self.assertContainsSubset(BELOW, order)

  def test_the_house_has_few_doors(self):
    entries = [p.name for p in PACKAGE.iterdir() if p.name != '__pycache__']
    self.assertLessEqual(len(entries), 18, entries)

  @parameterized.named_parameters(
      ('higher', 'client/local', 'from hmm_jax.algorithms import fedavg'),
      ('experiment_from_report', 'report/plots', 'from hmm_jax.experiment import build'),
      ('sibling_method', 'algorithms/fedmr', 'from hmm_jax.algorithms import fedavg'),
      ('sibling_by_name', 'algorithms/fedmr', 'from hmm_jax.algorithms.fedavg import fedavg'),
      ('sibling_source', 'data/sources/npz', 'from hmm_jax.data.sources import text'),
      ('flax', 'algorithms/fedmr', 'import flax.linen as nn'),
      ('configs_in_methods', 'algorithms/fedmr', 'from ml_collections import ConfigDict'),
      ('orbax', 'experiment/run', 'from orbax.checkpoint import v1'),
      ('matplotlib', 'report/tables', 'import matplotlib.pyplot'),
      ('early_tfds', 'data/sources/tfds', 'import tensorflow_datasets as tfds'),
      ('tfds', 'data/sources/npz', 'def f():\n  import tensorflow_datasets'),
      ('tensorflow', 'data/sources/tfds', 'def f():\n  import tensorflow'),
      ('relative', 'client/local', 'from . import losses'))
  def test_complains_about(self, name, source):
    self.assertLen(complaints(name, source), 1)

  @parameterized.named_parameters(
      ('types', 'tree', 'from hmm_jax.types import Array'),
      ('engine', 'algorithms/fedper', 'from hmm_jax.algorithms.engines.private_part import head'),
      ('parts', 'algorithms/fedmr', 'from hmm_jax.algorithms.parts import Parts'),
      ('flax', 'models/cnn', 'from flax import linen\nfrom hmm_jax.models import layers'),
      ('orbax', 'experiment/checkpoint', 'def f():\n  from orbax.checkpoint import v1'),
      ('tfds', 'data/sources/tfds', 'def f():\n  import tensorflow_datasets'))
  def test_allows(self, name, source):
    self.assertEqual(complaints(name, source), [])

  def test_no_file_is_a_drawer_for_everything(self):
    names = [part for name in sources() for part in name.split('/')]
    self.assertNoCommonElements(names, ['util', 'utils', 'helpers', 'common', 'misc'])

  def test_no_option_is_hidden(self):
    self.assertEqual([name for name, text in sources().items() if 'config.get(' in text], [])

  def test_importing_is_quick_and_lean(self):
    seconds, loaded = fresh('hmm_jax')
    self.assertLess(seconds, 1.5)
    self.assertNoCommonElements(loaded, ['tensorflow', 'tensorflow_datasets', 'matplotlib',
                                         'orbax', 'flax', 'ml_collections', 'hmm_jax.algorithms'])


def fresh(module: str) -> tuple[float, list[str]]:
  """Imports a module in a new process: the seconds beyond `import jax`, what is loaded."""
  program = ('import sys, time, jax; start = time.perf_counter(); '
             f'import {module}; print(time.perf_counter() - start, *sys.modules)')
  with tempfile.TemporaryDirectory() as elsewhere:
    result = subprocess.run(
        [sys.executable, '-c', program], cwd=elsewhere, check=True, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(PACKAGE.parent)})
  seconds, *loaded = result.stdout.split()
  return float(seconds), loaded


if __name__ == '__main__':
  absltest.main()
