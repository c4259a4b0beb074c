"""Files that are whole or absent, and digests that tell a damaged one."""

from collections.abc import Generator, Mapping
import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import stat
import tempfile

import jax
import numpy as np

from hmm_jax.types import PyTree, SaveError

_NEW = '.new-'  # Before the names of folders in which files are written.


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
  """Yields a path to write a file to, which then takes the place of `path`.

  It lies in a new folder, of a name that nobody can guess and that only its owner may enter: no
  link is followed. If anything fails, the old file stays, and nothing of the new one. Its mode is
  the old file's, or that of any new file.

  Raises:
    SaveError: the file system refuses.
  """
  parent, name = os.path.split(os.path.abspath(path))
  with saving(path), tempfile.TemporaryDirectory(
      dir=parent, prefix=_NEW, ignore_cleanup_errors=True) as folder:
    new = os.path.join(folder, name)
    with open(new, 'xb') as file:
      mode = os.fstat(file.fileno()).st_mode
    if os.path.isfile(path) and not os.path.islink(path):
      mode = os.stat(path).st_mode
    yield new
    with open(new, 'rb+') as file:
      os.fsync(file.fileno())
    os.chmod(new, stat.S_IMODE(mode))  # The writer of safetensors makes files of mode 0600.
    os.replace(new, path)


@contextlib.contextmanager
def new_folder(path: str) -> Generator[str]:
  """Yields a folder to fill, which then gets the name `path`; errors as of `replacing`."""
  new = os.path.join(os.path.dirname(path), f'{_NEW}{secrets.token_hex(8)}')
  try:
    with saving(path):
      os.mkdir(new)
      yield new
      os.rename(new, path)
  except BaseException:
    shutil.rmtree(new, ignore_errors=True)
    raise


def remove_leftovers(folder: str):
  """Removes what a kill kept `replacing` from completing in a folder, and in those in it."""
  for path in (path for pattern in (f'{_NEW}*', f'*/{_NEW}*')
               for path in pathlib.Path(folder).glob(pattern)):
    shutil.rmtree(path, ignore_errors=True)


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
