"""Strict numerics for every test: four fake devices, no silent rank promotion."""

from importlib import metadata
import itertools
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# What one run of the tests compiles, the next has compiled. Each worker has a folder of its own,
# for JAX may read what another process has written half.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(
    os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'hmm_jax',
    'tests', os.environ.get('PYTEST_XDIST_WORKER', 'one')))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('PYTHONWARNINGS', 'ignore:Error reading persistent compilation cache entry')
# Compiling is most of the time that the tests take; the flags, of older XLA only, halve it.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
if metadata.version('jax').startswith('0.10.'):
  os.environ['XLA_FLAGS'] = ' '.join([
      os.environ.get('XLA_FLAGS', ''), '--xla_cpu_use_fusion_emitters=false',
      '--xla_cpu_parallel_codegen_split_count=1'])

import jax
import pytest

from hmm_jax.experiment import pages

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')

DONE = itertools.count(1)


@pytest.hookimpl(tryfirst=True)  # Before xdist reads the marks.
def pytest_collection_modifyitems(items: list):
  """Keeps together, on one worker, what is compiled once for several tests.

  That is what the tests of a file share, and a method under several laws.
  """
  for item in items:
    group = item.path.as_posix()
    if item.path.name == 'laws_test.py' and hasattr(item, 'callspec'):
      case = item.callspec.params.get('case') or item.callspec.params['name']
      group += f' {case.removesuffix("-all")}'
    item.add_marker(pytest.mark.xdist_group(group))
  # The laws of a method one after another, before its programs are dropped.
  items.sort(key=lambda item: item.get_closest_marker('xdist_group').args[0])


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
  """Keeps runs of this process from drawing, which takes seconds; a test marked `draws` looks."""
  if not request.node.get_closest_marker('draws'):
    monkeypatch.setattr(pages, 'of_run', lambda workdir: None)
    monkeypatch.setattr(pages, 'of_all', lambda workdir: None)
    monkeypatch.setattr(pages, 'are_there', lambda workdir: True)


@pytest.fixture(autouse=True)
def _few_programs():
  """Drops what was compiled every so many tests: Linux has 65,530 memory maps a process.

  A compiled program takes dozens of maps; beyond the limit the compiler crashes.
  """
  yield
  if next(DONE) % 60 == 0:
    jax.clear_caches()
