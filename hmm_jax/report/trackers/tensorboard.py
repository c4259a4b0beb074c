"""TensorBoard event files, without TensorFlow."""

from collections.abc import Mapping
import os
import shutil

from tensorboardX import SummaryWriter

from hmm_jax.data import storage
from hmm_jax.report.trackers import Tracked
from hmm_jax.types import SaveError


class Events:
  """Event files of one seed in FOLDER/events/seedN, the curves of one run in TensorBoard.

  They are written anew each time, as a kill may have kept some rows from them.

  Raises:
    SaveError: the folder is a link, or the file system refuses.
  """

  def __init__(self, run: Tracked, seed: int):
    events = os.path.join(run.folder, 'events')
    folder = os.path.join(events, f'seed{seed}')
    if os.path.islink(events):
      raise SaveError(f'{events} is a link; expected a folder of the run')
    with storage.saving(folder):
      if os.path.isdir(folder):
        shutil.rmtree(folder)  # Which refuses a link.
      self._writer = SummaryWriter(folder)
    self.place = f'tensorboard --logdir={events}'

  def write(self, number: int, row: Mapping[str, float]):
    for name in row.keys() - {'round', 'seed'}:
      self._writer.add_scalar(name, row[name], int(row['round']))
    self._writer.flush()

  def close(self):
    """Writes what is still queued, which `flush` does not wait for."""
    self._writer.close()


open_seed = Events
