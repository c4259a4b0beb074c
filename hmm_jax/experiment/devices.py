"""Devices of a run: CPU cores as devices, the compile cache, and several processes."""

from collections.abc import Callable
import functools
import os
import socket
import sys

from absl import flags, logging
import jax
from ml_collections import ConfigDict
import psutil

from hmm_jax.experiment.federation import cohort as cohort_of
from hmm_jax.types import InputError

CPU_DEVICES = flags.DEFINE_integer(
    'cpu_devices', 0, 'Number of XLA devices on a CPU that share the clients; 0: one per core.',
    lower_bound=0)
COMPILE_CACHE = flags.DEFINE_bool(
    'compile_cache', True, "Keep compiled programs in the user's cache folder.")
COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of the first of several processes, or auto on a cluster.')
PROCESSES = flags.DEFINE_integer(
    'processes', None, 'Number of processes.', lower_bound=1)
PROCESS = flags.DEFINE_integer('process', None, 'Index of this process, from 0.', lower_bound=0)


def prepare_from_flags(config: ConfigDict):
  """Sets up devices, compile cache and processes for a config, by the flags."""
  if COMPILE_CACHE.value:
    keep_compiled()
  prepare(mapper=config.mapper, cohort=cohort_of(config), count=CPU_DEVICES.value)
  join_processes()
  if jax.process_count() > 1 and config.mapper in ('map', 'vmap'):
    raise InputError(f'got mapper={config.mapper} in {jax.process_count()} processes; expected '
                     'auto or sharded, which share the clients between processes')


def prepare(*, mapper: str, cohort: int, count: int = 0):
  """Configures several XLA devices on a CPU; must be called before JAX initializes its backends.

  Args:
    mapper: the name in the config.
    cohort: clients that share the devices; 0 if unknown.
    count: number of devices; 0: one per core, at most one per client.
  """
  logging.set_verbosity(logging.WARNING)  # JAX logs every backend that is absent.
  jax.config.update('jax_enable_x64', False)  # Models are float32.
  set_by_user = 'host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
  if mapper in ('auto', 'sharded') and not set_by_user:
    cores = usable_cores()
    jax.config.update('jax_num_cpu_devices', count or min(cores, cohort or cores))


def quietly():
  """Sets up a command that trains nothing: one device, compiled programs kept, no log of JAX."""
  logging.set_verbosity(logging.WARNING)
  keep_compiled()


def in_32_bits(function: Callable) -> Callable:
  """Runs a function with JAX's 32-bit types, whatever JAX_ENABLE_X64 says: models are float32."""

  @functools.wraps(function)
  def inner(*args, **kwargs):
    with jax.enable_x64(False):
      return function(*args, **kwargs)

  return inner


def usable_cores() -> int:
  """Returns the number of cores that this process may use, on any system."""
  try:
    return len(psutil.Process().cpu_affinity())
  except (AttributeError, NotImplementedError, psutil.Error):  # macOS has no affinity.
    return os.cpu_count() or 1


def keep_compiled():
  """Enables the compile cache in the user's cache folder, unless JAX is configured with another."""
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    home = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    jax.config.update('jax_compilation_cache_dir', os.path.join(home, 'hmm_jax', 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def join_processes():
  """Connects to the other processes by the flags; must be called before JAX makes any device."""
  where = {'coordinator': COORDINATOR.value, 'processes': PROCESSES.value,
           'process': PROCESS.value}
  given = ', '.join(f'{name}={value}' for name, value in where.items() if value is not None)
  try:
    if COORDINATOR.value == 'auto':
      jax.distributed.initialize()
    elif COORDINATOR.value:
      if PROCESS.value == 0:
        _check_port(COORDINATOR.value)
      jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    elif given:
      raise ValueError('there is no coordinator')
  except Exception as error:  # The type depends on the kind of cluster.
    raise InputError(f'got {given}; expected coordinator=HOST:PORT with processes and process, '
                     f'or coordinator=auto on a cluster: {error}') from error


def _check_port(address: str):
  """Raises OSError if the port of the coordinator is taken, at which JAX would crash."""
  with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(('', int(address.rpartition(':')[2])))


def leave(code: int, *, at_once: bool = False):
  """Exits with a code; one of several processes exits immediately, or any if asked to.

  Otherwise JAX would wait minutes for the others, which may in turn wait for this one, and Orbax
  for a checkpoint that has failed.
  """
  if not at_once and not jax.distributed.is_initialized():
    sys.exit(code)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
