"""Checks a method or an operator of one's own: python -m hmm_jax.check my_file.py:RECORD

RECORD is a `Method` or an `Operator`; a built-in one is checked by its name. The table says of each
law whether it holds, and if not, why. The exit code is 0 if all hold, 1 if one is broken, and 2
for a wrong call.
"""

import signal

# Until `entry`, Ctrl-C ends the process without a traceback; unless it is ignored.
if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, signal.SIG_DFL)

from collections.abc import Callable, Sequence
import sys

from absl import logging
import jax

from hmm_jax.algorithms import METHODS
from hmm_jax.check import methods, operators, placement
from hmm_jax.merging import OPERATORS
from hmm_jax.registry import Method, Operator, is_reference, load, suggestion
from hmm_jax.report.screen import Screen, fail
from hmm_jax.types import InputError


def main(argv: Sequence[str]) -> int:
  """Checks the record that is named; returns the exit code."""
  if len(argv) != 2 or argv[1].startswith('-'):
    raise InputError('got ' + (' '.join(argv[1:]) or 'no name') + '; expected one record, such as '
                     'my_file.py:METHOD or fedavg')
  logging.set_verbosity(logging.WARNING)
  jax.config.update('jax_num_cpu_devices', 4)
  laws = laws_of(argv[1])
  rows = [[law, *tried(holds)] for law, holds in laws.items()]
  Screen().table(argv[1], ['law', 'holds', 'why not'], rows)
  broken = sum(row[1] == 'no' for row in rows)
  print(f'{len(rows) - broken} of {len(rows)} laws hold')
  return int(broken > 0)


def laws_of(name: str) -> dict[str, Callable[[], None]]:
  """Returns the laws of a record, ready to be tried.

  Raises:
    InputError: there is none of that name.
  """
  known = OPERATORS | METHODS
  if name not in known and not is_reference(name):
    raise InputError(f'got {name}; expected a method, an operator, package.module:RECORD or '
                     'path/to/file.py:RECORD' + suggestion(name, known))
  record = known.get(name) or load('record', name, Method, Operator)
  if isinstance(record, Operator):
    return {law: lambda f=f: f(record) for law, f in operators.LAWS.items()}
  trial = methods.Trial(name)
  return {law: lambda f=f: f(trial) for law, f in (methods.LAWS | placement.LAWS).items()
          if name != 'fedavg' or f is not methods.differs_from_fedavg}


def tried(law: Callable[[], None]) -> tuple[str, str]:
  """Returns whether a law holds, and why not."""
  try:
    law()
  except AssertionError as error:
    return 'no', str(error)
  except Exception as error:  # Whatever somebody's own code raises.
    text = str(error).strip() or 'without a message'
    return 'no', f'{type(error).__name__}: {text.splitlines()[0]}'
  return 'yes', ''


def entry(argv: Sequence[str]):
  """Runs `main`; turns bad input, and Ctrl-C, into one line and an exit code."""
  try:
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(argv))
  except InputError as error:
    sys.exit(fail(error, 2))
  except KeyboardInterrupt:
    sys.exit(fail('interrupted', 130))


if __name__ == '__main__':
  entry(sys.argv)
