"""TensorBoard event files, without TensorFlow."""

from collections.abc import Mapping
import os
import shutil

from tensorboardX import SummaryWriter

from hmm_jax.report.trackers import Tracked


class Events:
  """Event files of one seed in FOLDER/events/seedN, the curves of one run in TensorBoard.

  They are written anew each time, as a kill may have kept some rows from them.
  """

  def __init__(self, run: Tracked, seed: int):
    folder = os.path.join(run.folder, 'events', f'seed{seed}')
    if os.path.isdir(folder):
      shutil.rmtree(folder)
    self.place = f'tensorboard --logdir={os.path.dirname(folder)}'
    self._writer = SummaryWriter(folder)

  def write(self, number: int, row: Mapping[str, float]):
    for name in row.keys() - {'round', 'seed'}:
      self._writer.add_scalar(name, row[name], int(row['round']))
    self._writer.flush()

  def close(self):
    """Writes what is still queued, which `flush` does not wait for."""
    self._writer.close()


open_seed = Events
