"""Files that are whole or absent, and digests that tell a damaged one."""

from collections.abc import Generator, Mapping
import contextlib
import hashlib
import json
import os
import secrets
import stat

import jax
import numpy as np

from hmm_jax.types import PyTree, SaveError


@contextlib.contextmanager
def saving(what: str) -> Generator[None]:
  """Turns a failure of the file system, such as a full disk, into one line.

  Raises:
    SaveError: it says why `what` can't be written.
  """
  try:
    yield
  except OSError as error:
    raise unsaved(what, error) from error


def unsaved(what: str, error: OSError) -> SaveError:
  """Returns the error of what can't be written, with the reason."""
  return SaveError(f'could not write {what}: {error.strerror or error}; what was saved before is '
                   'whole')


@contextlib.contextmanager
def replacing(path: str) -> Generator[str]:
  """Yields the path of a new file that takes the place of `path` once it is complete.

  After a failure or a kill, `path` is as before. A link is replaced, never followed, and a file
  that is replaced keeps its mode.

  Raises:
    SaveError: the file system refuses.
  """
  folder, name = os.path.split(path)
  # Nobody can have put a link there, as nobody can guess the name.
  new = os.path.join(folder, f'.{secrets.token_hex(8)}.new.{name}')
  try:
    with saving(path):
      os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
      yield new
      with open(new, 'rb+') as file:
        os.fsync(file.fileno())
      if os.path.isfile(path) and not os.path.islink(path):
        os.chmod(new, stat.S_IMODE(os.stat(path).st_mode))
      os.replace(new, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(new)
    raise


def leftovers(folder: str) -> list[str]:
  """Returns the paths of files in a folder that a kill kept `replacing` from completing."""
  names = os.listdir(folder) if os.path.isdir(folder) else []
  return [os.path.join(folder, name) for name in names
          if name.startswith('.') and name[17:22] == '.new.']


def digest_of_file(path: str) -> str:
  """Returns the digest of a file's content.

  Raises:
    OSError: it can't be read.
  """
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, _hasher).hexdigest()


def digest_of_json(content: Mapping) -> str:
  """Returns the digest of what a JSON file says, however it is laid out."""
  text = json.dumps(content, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_of_arrays(arrays: PyTree) -> str:
  """Returns the digest of a tree of arrays: of their shapes, types and values."""
  hasher = _hasher()
  for path, x in jax.tree.leaves_with_path(arrays):
    x = np.ascontiguousarray(x)
    hasher.update(f'{jax.tree_util.keystr(path)} {x.shape} {x.dtype}'.encode())
    hasher.update(x.reshape(-1).view(np.uint8))
  return hasher.hexdigest()


def _hasher():
  return hashlib.blake2b(digest_size=16)
