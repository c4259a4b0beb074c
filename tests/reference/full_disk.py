"""A disk that is full, as far as files of this process go."""

from collections.abc import Iterator
import contextlib
import resource


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
  """Lets files grow to some bytes only: a longer write raises OSError, EFBIG."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
