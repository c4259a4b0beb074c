"""The devices of a run: several made of one CPU, or those of several processes."""

import os
import sys

from absl import flags, logging
import jax

from hmm_jax.types import InputError

CPU_DEVICES = flags.DEFINE_integer(
    'cpu_devices', 0, 'XLA devices to make of a CPU, to share the clients; 0: one a core.',
    lower_bound=0)
COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of the first of several processes, or auto on a cluster.')
PROCESSES = flags.DEFINE_integer(
    'processes', None, 'How many processes there are.', lower_bound=1)
PROCESS = flags.DEFINE_integer('process', None, 'Which of them this is, from 0.', lower_bound=0)


def prepare(*, mapper: str, cohort: int):
  """Joins the other processes, if any, and makes several devices of a CPU.

  Args:
    mapper: the name in the config.
    cohort: clients that share the devices; 0 where it is not known.

  Raises:
    InputError: the flags or the mapper do not suit several processes.
  """
  logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that is not there.
  set_by_user = 'host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
  if mapper in ('auto', 'sharded') and not set_by_user:
    cores = len(os.sched_getaffinity(0))
    jax.config.update('jax_num_cpu_devices', CPU_DEVICES.value or min(cores, cohort or cores))
  join_processes()
  if jax.process_count() > 1 and mapper in ('map', 'vmap'):
    raise InputError(f'got mapper={mapper} in {jax.process_count()} processes; expected '
                     'auto or sharded, which share the clients between them')


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
