"""TensorBoard event files."""

from hmm_jax.types import InputError


class Events:
  """TensorBoard event files, without TensorFlow."""

  def __init__(self, folder: str):
    try:
      from tensorboardX import SummaryWriter
    except ImportError as error:
      raise InputError("got tensorboard=True, but tensorboardX is not installed; expected "
                       "pip install 'hmm_jax[tensorboard]'") from error
    self._writer = SummaryWriter(folder)

  def write(self, rows: list[dict]):
    for row in rows:
      for name in row.keys() - {'round', 'seed'}:
        self._writer.add_scalar(f'seed{row["seed"]}/{name}', row[name], row['round'])
    self._writer.flush()
