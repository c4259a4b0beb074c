"""TensorBoard event files."""

from collections.abc import Iterable
import os
import shutil

from hmm_jax import storage
from hmm_jax.types import InputError


class Events:
  """TensorBoard event files, without TensorFlow.

  Args:
    folder: of the files, which are written anew, as a kill may have kept some rows from them.
    rows: of metrics.csv so far.

  Raises:
    InputError: tensorboardX is not installed.
    SaveError: the file system refuses.
  """

  def __init__(self, folder: str, rows: Iterable[dict]):
    try:
      from tensorboardX import SummaryWriter
    except ImportError as error:
      raise InputError("got tensorboard=True, but tensorboardX is not installed; expected "
                       "pip install 'hmm_jax[tensorboard]'") from error
    with storage.saving(folder):
      if os.path.isdir(folder):
        shutil.rmtree(folder)  # Which refuses a link.
      self._writer = SummaryWriter(folder)
    self.write(rows)

  def write(self, rows: Iterable[dict]):
    for row in rows:
      for name in row.keys() - {'round', 'seed'}:
        self._writer.add_scalar(f'seed{row["seed"]}/{name}', row[name], row['round'])
    self._writer.flush()

  def close(self):
    """Writes what is still queued, which `flush` does not wait for."""
    self._writer.close()
