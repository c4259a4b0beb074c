"""Checkpoints of a run: each is complete or ignored."""

from asyncio import log as asyncio_log
from collections.abc import Callable
import errno
import functools
import os
import shutil
import sys

from absl import logging
import jax
import numpy as np

from hmm_jax.data import storage
from hmm_jax.types import InputError, PyTree, SaveError


class Checkpoints:
  """The checkpoints in one folder, numbered by round; only `save` and `remove` change it.

  Incomplete checkpoints of a killed process are ignored. Trees are saved as host arrays,
  so they can be restored on any number of devices.
  """

  def __init__(self, folder: str):
    self._folder = os.path.abspath(folder)

  def rounds(self) -> list[int]:
    """Returns the rounds of the complete checkpoints, in order.

    Raises:
      InputError: there is a file in the folder's place.
    """
    if not os.path.isdir(self._folder):
      if os.path.lexists(self._folder):
        raise InputError(f'got {self._folder}, which is a file; expected a folder of checkpoints')
      return []
    return sorted(int(name) for name in os.listdir(self._folder)
                  if name.isdecimal() and str(int(name)) == name
                  and _orbax().is_orbax_checkpoint(self._path(int(name))))

  def save(self, number: int, tree: PyTree):
    """Saves a tree of arrays; returns when it is complete on disk.

    Raises:
      SaveError: the file system refuses.
    """
    try:
      self._saver.save(number, jax.tree.map(np.asarray, tree))
    except Exception as error:  # Orbax and tensorstore raise various types on a full disk.
      raise SaveError(f'could not write {self._path(number)}: {_reason(error)}; what was saved '
                      'before is whole') from error

  def restore(self, number: int, like: PyTree) -> PyTree:
    """Loads a tree with the structure, shapes and dtypes of `like`.

    Raises:
      InputError: the checkpoint is damaged, or of another model or algorithm.
    """
    expected = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    where = f'checkpoint {self._path(number)}'
    try:
      tree = _orbax().load(self._path(number), expected)
    except Exception as error:  # Orbax and tensorstore raise various types on damaged files.
      raise InputError(f'got a damaged or foreign {where}; expected one of this run, or '
                       'resume=previous to go back to the last whole one') from error
    differ = [jax.tree_util.keystr(path) for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected))
              if (a.shape, a.dtype) != (b.shape, b.dtype)]
    if differ:
      raise InputError(f'got {where} of another model or algorithm; expected one of this run, but '
                       f'{differ[0]} differs')
    return tree

  def remove(self, unless: Callable[[int], bool]):
    """Removes the checkpoints, incomplete ones too, unless a function of their round forbids it."""
    for name in os.listdir(self._folder) if os.path.isdir(self._folder) else ():
      number = name.partition('.')[0]  # A temporary folder has a suffix.
      if number.isdecimal() and not unless(int(number)):
        with storage.saving(self._folder):
          shutil.rmtree(os.path.join(self._folder, name))

  def files(self, number: int) -> list[str]:
    """Returns the paths of the files of one checkpoint."""
    return sorted(os.path.join(folder, name)
                  for folder, _, names in os.walk(self._path(number)) for name in names)

  def _path(self, number):
    return os.path.join(self._folder, str(number))

  @functools.cached_property
  def _saver(self):
    return _orbax().training.Checkpointer(self._folder, cleanup_tmp_directories=True)


@functools.cache
def _orbax():
  # Imported here, because it takes 0.2 s.
  from orbax.checkpoint import v1 as orbax
  logging.set_verbosity(logging.FATAL)  # Damaged files are reported by `restore`, once.
  # Of several files that can't be read, Orbax waits for one; asyncio would report the others.
  asyncio_log.logger.addFilter(lambda record: 'never retrieved' not in record.getMessage())
  # After a failure, what is under way would report that its event loop is closed.
  report = sys.unraisablehook
  sys.unraisablehook = lambda unraisable: (
      None if 'loop is closed' in str(unraisable.exc_value) else report(unraisable))
  return orbax


def _reason(error: Exception) -> str:
  """Says why the file system refuses; tensorstore says it somewhere in a page."""
  numbers = (getattr(errno, name, None) for name in (
      'ENOSPC', 'EFBIG', 'EDQUOT', 'EROFS', 'EACCES', 'ENOENT'))
  reasons = (os.strerror(number) for number in numbers if number)
  text = getattr(error, 'strerror', None) or str(error)
  return next((reason for reason in reasons if reason in text), text)
