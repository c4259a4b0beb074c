"""Weights & Biases: online, or offline with WANDB_MODE=offline and `wandb sync` later."""

from collections.abc import Mapping
import glob
import os
import shutil

import wandb

from hmm_jax.report.trackers import Tracked
from hmm_jax.types import InputError

# Seconds without a server, for which W&B would otherwise keep a process from ending minutes long.
_PATIENCE = 20.0


def check():
  """Raises InputError if rows are to be sent and nobody is logged in."""
  if wandb.setup().settings.mode == 'online' and not wandb.login(prompt=False, verify=False):
    raise InputError('got track=wandb, but nobody is logged in; expected `wandb login`, '
                     'WANDB_API_KEY=..., or WANDB_MODE=offline')


class Run:
  """One seed: a run of a stable id, in a group of the run's name.

  Points are numbered by evaluation, because W&B would join the two rows of a round with a final
  merge, and are drawn over `round`. Online the server says how many points it has. Offline nobody
  does, so all are written again, and the folder of the same id is replaced.
  """

  def __init__(self, run: Tracked, seed: int):
    name = f'{run.id}-{seed}'
    folder = os.environ.get('WANDB_DIR') or run.folder
    for old in glob.glob(os.path.join(glob.escape(folder), 'wandb', f'offline-run-*-{name}')):
      shutil.rmtree(old)
    self._run = wandb.init(
        project=os.environ.get('WANDB_PROJECT') or 'hmm_jax', id=name, name=run.label(seed),
        group=run.name, config=dict(run.config) | {'this_seed': seed}, dir=folder, resume='allow',
        reinit='create_new', settings=wandb.Settings(
            silent=True, console='off', save_code=False, disable_git=True, disable_code=True,
            init_timeout=_PATIENCE, finish_timeout=_PATIENCE))
    self._run.define_metric('round')
    self._run.define_metric('*', step_metric='round')
    self._begun = self._run.starting_step
    self.place = (f'wandb sync {folder}/wandb/offline-run-*-{run.id}-*' if self._run.offline else
                  f'{self._run.project_url}/groups/{run.name}')

  def write(self, number: int, row: Mapping[str, float]):
    if number >= self._begun:
      self._run.log({key: value for key, value in row.items() if key != 'seed'}, step=number)

  def close(self):
    self._run.finish()


open_seed = Run
