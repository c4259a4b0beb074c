"""Files that people give: ordinary ones only, and one line for what is wrong with one."""

from collections.abc import Callable, Generator
import contextlib
import gzip
import io
import lzma
import os
import stat
import textwrap
from typing import IO, Any, NamedTuple

import psutil

from hmm_jax.registry import Setting
from hmm_jax.types import InputError

# Makes the error for what is wrong with a file: (text) -> InputError.
Refusal = Callable[[str], InputError]
_OPENERS = {'.gz': gzip.open, '.xz': lzma.open}
UNPACK_LIMIT = {'unpack_limit': Setting(
    0.0, 'GiB that a compressed file may unpack to; 0: a quarter of the memory', at_least=0)}


class Limit(NamedTuple):
  """What compressed files may unpack to.

  gib:    in 2**30 bytes; 0 for a quarter of the machine's memory. Our choice: that leaves room for
          a copy in the types of a run, and for one on the devices.
  option: what sets it, for errors; '' if nothing does.
  """

  gib: float = 0.0
  option: str = ''

  @property
  def nbytes(self) -> float:
    return self.gib * 2**30 or psutil.virtual_memory().total / 4

  def check(self, size: float, refusal: Refusal, *, more: bool = False):
    """Raises refusal(reason) if so many bytes, or `more` than so many, are above the limit."""
    if size <= self.nbytes:
      return
    raise refusal(f'expected a file that unpacks to at most {_gib(self.nbytes)}, it has '
                  f'{"more" if more else _gib(size)}'
                  + (f'; {self.option} can be larger' if self.option else ''))


DEFAULT_LIMIT = Limit()


class Unpacked(io.RawIOBase):
  """A decompressed stream, which fails beyond a limit."""

  def __init__(self, stream: IO[bytes] | io.BufferedIOBase, limit: Limit, refusal: Refusal):
    super().__init__()
    self._stream, self._limit, self._refusal, self._size = stream, limit, refusal, 0

  def readable(self) -> bool:
    return True

  def readinto(self, buffer, /) -> int:
    content = self._stream.read(len(buffer))
    buffer[:len(content)] = content
    self._size += len(content)
    self._limit.check(self._size, self._refusal, more=True)
    return len(content)


@contextlib.contextmanager
def opened_text(path: str, limit: Limit, refusal: Refusal) -> Generator[io.TextIOWrapper]:
  """Yields a text stream of a file, unpacked if it is .gz or .xz, which fails beyond the limit."""
  path = ordinary(path)
  packed = _OPENERS.get(os.path.splitext(path)[1])
  with (packed or open)(path, 'rb') as file:
    stream: Any = io.BufferedReader(Unpacked(file, limit, refusal)) if packed else file
    yield io.TextIOWrapper(stream, encoding='utf-8-sig', newline='')


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


def _gib(size: float) -> str:
  gib = size / 2**30
  return f'{gib:,.0f} GiB' if gib >= 100 else f'{gib:.3g} GiB'
