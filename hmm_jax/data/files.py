"""Files that people give: ordinary ones only, and one line for what is wrong with one."""

from collections.abc import Callable, Generator
import contextlib
import os
import stat
import textwrap

from hmm_jax.types import InputError

# Makes the error for what is wrong with a file: (text) -> InputError.
Refusal = Callable[[str], InputError]


def ordinary(path: str) -> str:
  """Returns the path of a file, with ~ replaced.

  Raises:
    OSError: there is none, or a pipe or device, which could be read for ever.
  """
  path = os.path.expanduser(path)
  mode = os.stat(path).st_mode
  if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # Whoever opens a folder says so.
    raise OSError(f'a pipe or device: {path!r}')
  return path


@contextlib.contextmanager
def reading(what: str, refusal: Refusal) -> Generator[None]:
  """Turns any error of reading a file into a refusal that says what was expected.

  Readers let through whatever damaged bytes raise, from zlib.error to TokenError.
  """
  try:
    yield
  except InputError:
    raise
  except Exception as error:
    reason = textwrap.shorten(str(error) or type(error).__name__, 200)
    raise refusal(f'expected {what}: {reason}') from error
