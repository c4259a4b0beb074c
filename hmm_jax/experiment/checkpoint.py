"""Checkpoints of a run: atomic, with the newest few kept."""

import os
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from hmm_jax.types import InputError, PyTree


class Checkpoints:
  """The checkpoints in one folder, numbered by round.

  Incomplete checkpoints of a killed process are ignored. Trees are saved as host arrays,
  so they can be restored on any number of devices.
  """

  def __init__(self, folder: str, keep: int = 2):
    # Imported here, because it takes 0.2 s.
    from orbax.checkpoint import v1 as orbax
    logging.set_verbosity(logging.FATAL)  # Damaged files are reported by `restore`, once.
    self._folder = folder
    latest: Any = orbax.training.preservation_policies.LatestN(keep)
    self._orbax = orbax.training.Checkpointer(
        os.path.abspath(folder), cleanup_tmp_directories=True, preservation_policy=latest)

  def latest(self) -> int | None:
    """Returns the round of the newest checkpoint, or None.

    Raises:
      InputError: several processes do not see the same folder.
    """
    newest = self._orbax.latest.step if self._orbax.latest else None
    seen = multihost_utils.process_allgather(np.int32(-1 if newest is None else newest))
    if (seen != seen.ravel()[0]).any():
      raise InputError(f'got {self._folder} with different checkpoints in other processes; '
                       'expected a workdir that all processes share')
    return newest

  def save(self, round_number: int, tree: PyTree):
    """Saves a tree of arrays; returns when it is complete on disk."""
    self._orbax.save(round_number, jax.tree.map(np.asarray, tree))

  def restore(self, round_number: int, like: PyTree) -> PyTree:
    """Loads a tree with the structure, shapes and dtypes of `like`.

    Raises:
      InputError: the checkpoint is damaged, or of another model or algorithm.
    """
    expected = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    where = f'checkpoint {os.path.join(self._folder, str(round_number))}'
    try:
      tree = self._orbax.load(round_number, expected)
    except Exception as error:  # Orbax and tensorstore raise various types on damaged files.
      raise InputError(f'got a damaged or foreign {where}; expected one of this run, move it away '
                       'to resume from an earlier one') from error
    differ = [jax.tree_util.keystr(path) for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(expected))
              if (a.shape, a.dtype) != (b.shape, b.dtype)]
    if differ:
      raise InputError(f'got {where} of another model or algorithm; expected one of this run, but '
                       f'{differ[0]} differs')
    return tree
