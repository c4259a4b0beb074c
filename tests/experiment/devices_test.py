"""Runs go on any system: nothing that only Linux has is needed."""

import os
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import psutil

import hmm_jax as hmm
from hmm_jax.experiment import devices
from hmm_jax.experiment.run import peak_memory


class AnyMachineTest(absltest.TestCase):

  def test_cores_are_those_that_the_process_may_use(self):
    self.assertBetween(devices.usable_cores(), 1, os.cpu_count())

  def test_cores_without_affinity(self):
    for error in (AttributeError, NotImplementedError, psutil.Error):
      with mock.patch.object(psutil.Process, 'cpu_affinity', side_effect=error, create=True):
        self.assertEqual(devices.usable_cores(), os.cpu_count())

  def test_peak_memory_has_the_units_of_the_system(self):
    here = peak_memory()
    self.assertGreater(here, 2**26)
    with mock.patch.dict(sys.modules, resource=None):
      self.assertBetween(peak_memory(), 2**26, 2 * here)

  def test_a_run_without_what_linux_alone_has(self):
    lean = {name: getattr(os, name) for name in dir(os)
            if name not in ('sched_getaffinity', 'sched_setaffinity')}
    if 'process_cpu_count' in lean:  # From CPython 3.13 on; elsewhere it is cpu_count.
      lean['process_cpu_count'] = os.cpu_count
    with mock.patch.dict(sys.modules, resource=None, fcntl=None), (
        mock.patch.dict(vars(os), lean, clear=True)), (
        tempfile.TemporaryDirectory()) as folder:
      run = hmm.run(hmm.config(rounds=1, eval_every=1, seeds=1, clients=3, participation=0,
                               **{'mlp.hidden': (), 'partition.alpha': 1.0}), folder, silent=True)
      self.assertEqual(run.summary['rounds'], 1)

  def test_compiled_programs_are_kept_where_the_user_keeps_caches(self):
    before = jax.config.jax_compilation_cache_dir
    try:
      with mock.patch.dict(os.environ, {'XDG_CACHE_HOME': '/tmp/caches'}), (
          mock.patch.dict(os.environ)):
        os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)
        devices.keep_compiled()
        self.assertEqual(jax.config.jax_compilation_cache_dir, '/tmp/caches/hmm_jax/xla')
      with mock.patch.dict(os.environ, {'JAX_COMPILATION_CACHE_DIR': '/elsewhere'}):
        jax.config.update('jax_compilation_cache_dir', '/elsewhere')
        devices.keep_compiled()
        self.assertEqual(jax.config.jax_compilation_cache_dir, '/elsewhere')
    finally:
      jax.config.update('jax_compilation_cache_dir', before)


if __name__ == '__main__':
  absltest.main()
