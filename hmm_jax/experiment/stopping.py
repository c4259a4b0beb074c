"""Signals that ask a run to stop: it finishes its round, saves, and ends."""

from collections.abc import Generator
import contextlib
import signal
import sys
import threading

# What clusters send before they take a machine away, as far as the system knows it.
_SIGNALS = ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1')


class Stopped(RuntimeError):
  """A signal has ended the run, which can go on from what it saved; `code` is the exit code."""

  def __init__(self, message: str, code: int):
    super().__init__(message)
    self.code = code


class Request:
  """Whether a signal has asked to stop."""

  def __init__(self):
    self.number = 0  # of the signal; 0: none yet

  @property
  def code(self) -> int:
    """The exit code of a process that a signal has ended, if only another process got it."""
    return 128 + (self.number or signal.SIGTERM)

  def receive(self, number: int, _):
    """Takes a signal; the second interrupt from the keyboard ends the process at once."""
    if self.number and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.number = number
    again = '; once more to stop at once' if number == signal.SIGINT else ''
    with contextlib.suppress(OSError, ValueError):
      print(f'hmm_jax: {signal.Signals(number).name}: finishing the round{again}',
            file=sys.stderr, flush=True)


@contextlib.contextmanager
def on_signals() -> Generator[Request]:
  """Yields the request to stop that a signal makes while the context is open.

  What is ignored stays so: hang-ups under nohup, Ctrl-C in the background.
  """
  request, before = Request(), {}
  if threading.current_thread() is threading.main_thread():  # Only it may handle signals.
    for name in _SIGNALS:
      number = getattr(signal, name, None)
      if number and signal.getsignal(number) is not signal.SIG_IGN:
        before[number] = signal.signal(number, request.receive)
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler or signal.SIG_DFL)
