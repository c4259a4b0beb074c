"""Tests that a module imports only what stands on a lower floor, and opens its own doors."""

import ast
from collections.abc import Iterator
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

from absl.testing import absltest, parameterized

import hmm_jax

PACKAGE = pathlib.Path(hmm_jax.__file__).parent

FLOORS = {
    'types': 0, 'tree': 0, '__version__': 0,
    'data': 1, 'models': 1, 'merging': 1, 'graphs': 1, 'metrics': 1,
    'client': 2,
    'algorithms': 3,
    'run': 4, 'trainer': 4, 'checkpoint': 4, 'log': 4, 'evaluate': 4, 'devices': 4, 'landscape': 4,
    'tensors': 4,
    'config': 5, 'holdings': 5, 'build': 5, 'methods': 5, 'variants': 5,
    'main': 6, 'merge': 6, 'bench': 6, 'saved': 6, 'whole': 6, 'plots': 6, 'report': 6,
}
# Rooms whose files know nothing of each other.
STRANGERS = ('data', 'algorithms')
# Rooms that an algorithm is given the contents of, and never fetches.
GIVEN = ('data', 'models')
# Who may import what: files, or rooms.
DOORS = {
    'flax': ('models',),
    'orbax': ('checkpoint',),
    'tensorflow_datasets': ('data/tfds',),
    'matplotlib': ('plots',),
    'safetensors': ('tensors',),
    'networkx': ('graphs/undirected',),
    'ml_collections': ('config', 'holdings', 'build', 'methods', 'variants', 'bench',
                       'main'),
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


def room(module: str) -> str:
  return module.replace('/', '.').split('.')[0]


def sources() -> dict[str, str]:
  """Returns {'client/local': source, ...}, without the packages' own docstring files."""
  files = {path.relative_to(PACKAGE).with_suffix('').as_posix(): path.read_text()
           for path in sorted(PACKAGE.rglob('*.py'))}
  return {name: text for name, text in files.items() if name.split('/')[-1] != '__init__'}


def complaints(name: str, source: str) -> list[str]:
  """Returns what is wrong with the imports of the file `name`, such as 'client/local'."""
  wrong, here = [], room(name)
  if here not in FLOORS:
    return [f'{name} stands on no floor of FLOORS']
  for module, own, lazy in imports(source):
    there, top = room(module), module.split('.')[0]
    if own and there not in FLOORS:
      wrong.append(f'{name} imports {module}, which stands on no floor')
    elif own and FLOORS[there] > FLOORS[here]:
      wrong.append(f'{name} imports {module} of a higher floor')
    elif own and here == there and here in STRANGERS:
      wrong.append(f'{name} imports its sibling {module}')
    elif own and FLOORS[there] == FLOORS[here] == 1 and there != here:
      wrong.append(f'{name} imports {module} of another room on its floor')
    elif own and here == 'algorithms' and there in GIVEN:
      wrong.append(f'{name} imports {module} instead of being given it')
    elif own and here == 'config' and there != 'types':
      wrong.append(f'{name} imports {module}; it may know types only')
    elif not own and not any(name == door or here == door for door in DOORS.get(top, (here,))):
      wrong.append(f'{name} imports {top}')
    elif not own and top in LAZY and not lazy:
      wrong.append(f'{name} imports {top} before it needs it')
  return wrong


class LayersTest(parameterized.TestCase):

  def test_every_file_keeps_to_its_floor(self):
    self.assertGreater(len(sources()), 15)
    self.assertEqual([c for name, text in sources().items() for c in complaints(name, text)], [])

  @parameterized.parameters(
      ('tree', 'from hmm_jax.client import local'),
      ('types', 'from hmm_jax.algorithms.fedavg import fedavg'),
      ('data/clients', 'from hmm_jax.data import partition'),
      ('data/clients', 'import hmm_jax.data.partition'),
      ('data/clients', 'from hmm_jax.data.partition import iid'),
      ('data/clients', 'def f():\n  from hmm_jax.data import partition'),
      ('models/cnn', 'from hmm_jax.data import augment'),
      ('merging/invert', 'from hmm_jax.models import cnn'),
      ('client/local', 'from hmm_jax.algorithms import fedavg'),
      ('client/local', 'from hmm_jax import evaluate'),
      ('algorithms/fedmr', 'from hmm_jax.algorithms import fedavg'),
      ('algorithms/fedmr', 'from hmm_jax.models import mlp'),
      ('algorithms/fedmr', 'from hmm_jax.data import partition'),
      ('algorithms/fedmr', 'from hmm_jax import config'),
      ('algorithms/fedmr', 'import flax.linen as nn'),
      ('algorithms/fedmr', 'from flax import linen'),
      ('algorithms/fedmr', 'from ml_collections import ConfigDict'),
      ('run', 'from hmm_jax import build'),
      ('run', 'from orbax.checkpoint import v1'),
      ('config', 'from hmm_jax import tree'),
      ('config', 'from hmm_jax.algorithms import fedavg'),
      ('build', 'from hmm_jax import plots'),
      ('log', 'import matplotlib.pyplot'),
      ('data/tfds', 'import tensorflow_datasets as tfds'),
      ('data/npz', 'def f():\n  import tensorflow_datasets'),
      ('data/tfds', 'def f():\n  import tensorflow'),
      ('client/local', 'from . import losses'),
      ('helpers', ''),
  )
  def test_complains_about(self, name, source):
    self.assertLen(complaints(name, source), 1)

  @parameterized.parameters(
      ('tree', 'from hmm_jax.types import Array'),
      ('models/cnn', 'from flax import linen\nfrom hmm_jax.models import layers'),
      ('merging/average', 'from hmm_jax import tree'),
      ('client/local', 'from hmm_jax import tree\nimport optax'),
      ('algorithms/fedmr', 'from hmm_jax.merging import average\nfrom hmm_jax.client import local'),
      ('run', 'from hmm_jax.trainer import Trainer\nfrom hmm_jax.log import Workdir'),
      ('checkpoint', 'def f():\n  from orbax.checkpoint import v1'),
      ('data/tfds', 'def f():\n  import tensorflow_datasets'),
      ('build', 'from hmm_jax.config import check\nfrom hmm_jax.data import tfds'),
      ('main', 'from hmm_jax import build, plots'),
  )
  def test_allows(self, name, source):
    self.assertEqual(complaints(name, source), [])

  def test_no_file_is_a_drawer_for_everything(self):
    names = [part for name in sources() for part in name.split('/')]
    self.assertNoCommonElements(names, ['util', 'utils', 'helpers', 'common', 'misc'])

  def test_no_option_is_hidden(self):
    self.assertEqual([name for name, text in sources().items() if 'config.get(' in text], [])

  def test_importing_the_package_is_quick_and_lean(self):
    seconds, loaded = fresh('hmm_jax')
    self.assertLess(seconds, 1.5)
    self.assertNoCommonElements(loaded, ['tensorflow', 'tensorflow_datasets', 'matplotlib',
                                         'orbax', 'flax', 'ml_collections'])

  def test_building_needs_neither_tensorflow_nor_pictures(self):
    _, loaded = fresh('hmm_jax.build')
    self.assertNoCommonElements(loaded, ['tensorflow', 'tensorflow_datasets', 'matplotlib',
                                         'orbax'])


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
