"""The devices of a run: several made of one CPU, or those of several processes."""

import os
import sys

from absl import flags, logging
import jax
from ml_collections import ConfigDict
import psutil

from hmm_jax.experiment.federation import cohort as cohort_of
from hmm_jax.types import InputError

CPU_DEVICES = flags.DEFINE_integer(
    'cpu_devices', 0, 'XLA devices to make of a CPU, to share the clients; 0: one a core.',
    lower_bound=0)
COMPILE_CACHE = flags.DEFINE_bool(
    'compile_cache', True, "Keep compiled programs in the user's cache folder.")
COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of the first of several processes, or auto on a cluster.')
PROCESSES = flags.DEFINE_integer(
    'processes', None, 'How many processes there are.', lower_bound=1)
PROCESS = flags.DEFINE_integer('process', None, 'Which of them this is, from 0.', lower_bound=0)


def prepare_from_flags(config: ConfigDict):
  """Prepares devices, compile cache and processes for a config, by the flags."""
  if COMPILE_CACHE.value:
    keep_compiled()
  prepare(mapper=config.mapper, cohort=cohort_of(config), count=CPU_DEVICES.value)
  join_processes()
  if jax.process_count() > 1 and config.mapper in ('map', 'vmap'):
    raise InputError(f'got mapper={config.mapper} in {jax.process_count()} processes; expected '
                     'auto or sharded, which share the clients between them')


def prepare(*, mapper: str, cohort: int, count: int = 0):
  """Makes several devices of a CPU, before JAX makes any.

  Args:
    mapper: the name in the config.
    cohort: clients that share the devices; 0 where it is not known.
    count: of devices; 0: one for each core, as far as there are clients.
  """
  logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that is not there.
  set_by_user = 'host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
  if mapper in ('auto', 'sharded') and not set_by_user:
    cores = usable_cores()
    jax.config.update('jax_num_cpu_devices', count or min(cores, cohort or cores))


def usable_cores() -> int:
  """Counts the cores that this process may use, on any system."""
  try:
    return len(psutil.Process().cpu_affinity())
  except (AttributeError, NotImplementedError, psutil.Error):  # macOS has no affinity.
    return os.cpu_count() or 1


def keep_compiled():
  """Keeps compiled programs in the user's cache folder, unless JAX was told of another."""
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    jax.config.update('jax_compilation_cache_dir', os.path.join(home, 'hmm_jax', 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def join_processes():
  """Meets the other processes that the flags speak of, before JAX makes any device."""
  where = {'coordinator': COORDINATOR.value, 'processes': PROCESSES.value,
           'process': PROCESS.value}
  given = ', '.join(f'{name}={value}' for name, value in where.items() if value is not None)
  try:
    if COORDINATOR.value == 'auto':
      jax.distributed.initialize()
    elif COORDINATOR.value:
      jax.distributed.initialize(*where.values())
    elif given:
      raise ValueError('there is no coordinator')
  except Exception as error:  # Each kind of cluster has its own.
    raise InputError(f'got {given}; expected coordinator=HOST:PORT with processes and process, '
                     f'or coordinator=auto on a cluster: {error}') from error


def leave(code: int):
  """Exits; one of several processes does so at once.

  JAX would wait minutes for the others, which may themselves wait for this one.
  """
  if not jax.distributed.is_initialized():
    sys.exit(code)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
