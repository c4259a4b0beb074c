"""Strict numerics for every test: four fake devices, no silent rank promotion."""

import ast
import atexit
import itertools
import os
import shutil
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# What one test compiles, the others and the commands that they start have compiled. JAX may read
# what another process has written half: it warns, and compiles (pyproject.toml lets tests do so).
os.environ.setdefault('PYTHONWARNINGS', 'ignore:Error reading persistent compilation cache entry')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# Compiling is most of the time that the suite takes.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')

DONE = itertools.count(1)


def pytest_collection_modifyitems(items: list):
  """Keeps together, on one worker, what is made once for several tests.

  That is the set-up of a class, and an algorithm that several laws compile.
  """
  is_law = lambda item: item.path.name == 'laws_test.py'
  laws = sorted(filter(is_law, items), key=_algorithm)
  for item in items:
    if is_law(item):
      item.add_marker(pytest.mark.xdist_group(_algorithm(item)))
    elif 'setUpClass' in vars(item.cls):
      item.add_marker(pytest.mark.xdist_group(item.cls.__qualname__))
  together = iter(laws)
  items[:] = [next(together) if is_law(item) else item for item in items]


def _algorithm(law) -> str:
  """Returns the first of a law's parameters."""
  values = ast.literal_eval(law.function.__x_params_repr__)
  return values if isinstance(values, str) else values[0]


@pytest.fixture(autouse=True)
def _few_programs():
  """Drops what was compiled every so many tests: Linux has 65,530 memory maps a process.

  A compiled program takes dozens of maps; beyond the limit the compiler crashes.
  """
  yield
  if next(DONE) % 60 == 0:
    jax.clear_caches()
