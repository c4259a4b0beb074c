"""A machine that fails: at the n-th change of a file nothing works any more, as after a kill."""

import builtins
from collections.abc import Generator
import contextlib
import errno
import os
import threading
from unittest import mock

_CALLS = [(os, 'fsync'), (os, 'replace'), (os, 'rename'), (os, 'mkdir'), (os, 'remove'),
          (os, 'unlink'), (os, 'rmdir'), (os, 'chmod')]


class Killed(BaseException):
  """The process is gone; whoever catches it can change no file either."""


class Fault:
  """Counts the changes of files; from the n-th on, each fails."""

  def __init__(self, n: int, error: BaseException, *, once: bool):
    self.n, self.error, self.once, self.count = n, error, once, 0

  def strike(self):
    self.count += 1
    # Threads of Orbax that are gone with the process would be waited for at its end.
    error = self.error if threading.current_thread() is threading.main_thread() else OSError(
        errno.EIO, 'gone')
    if self.count == self.n or (self.count > self.n and not self.once):
      raise error


@contextlib.contextmanager
def failing(n: int, kind: str) -> Generator[Fault]:
  """Fails the n-th change of a file; yields what counts them.

  Args:
    n: from 1.
    kind: `once`: that call fails, for whatever reason; `full`: the disk stays full, but files can
      be removed; `killed`: nothing works any more.
  """
  error = Killed() if kind == 'killed' else OSError(errno.ENOSPC, 'No space left on device')
  fault = Fault(n, error, once=kind == 'once')

  def wrapped(function, name):
    def call(*args, **kwargs):
      writes = name not in ('open', 'os.open') or _writes(name, args, kwargs)
      frees = kind == 'full' and name in ('remove', 'unlink', 'rmdir', 'replace')
      if writes and not frees:
        fault.strike()
      return function(*args, **kwargs)
    return call

  with contextlib.ExitStack() as stack:
    for module, name in _CALLS:
      stack.enter_context(mock.patch.object(module, name, wrapped(getattr(module, name), name)))
    stack.enter_context(mock.patch.object(os, 'open', wrapped(os.open, 'os.open')))
    stack.enter_context(mock.patch.object(builtins, 'open', wrapped(open, 'open')))
    yield fault


def _writes(name, args, kwargs):
  if name == 'os.open':
    return bool(args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
  mode = args[1] if len(args) > 1 else kwargs.get('mode', 'r')
  return bool(set(mode) & set('wax+'))
