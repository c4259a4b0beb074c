"""Trackio: in its local folder, or the Space or server that TRACKIO_... variables name."""

from collections.abc import Mapping
import contextvars
import os

import trackio
import trackio.run
import trackio.utils

from hmm_jax.report.trackers import Tracked

for module in (trackio, trackio.run, trackio.utils):  # They print on the screen of the run.
  vars(module).setdefault('print', lambda *words, **settings: None)


class Run:
  """One seed: a run found by its name, which holds the run's id; points are at their rounds."""

  def __init__(self, run: Tracked, seed: int):
    project = os.environ.get('TRACKIO_PROJECT') or 'hmm_jax'
    # In a context of its own: Trackio ends the run that was begun last in the same one.
    self._run = contextvars.Context().run(
        trackio.init, project, name=f'{run.label(seed)} {run.id}', group=run.name,
        config=dict(run.config), resume='allow', embed=False, auto_log_gpu=False,
        auto_log_cpu=False)
    self._next = self._run._next_step  # Nothing public says it of a server's runs, too.
    self.place = f'trackio show --project={project}'

  def write(self, number: int, row: Mapping[str, float]):
    if row['round'] >= self._next:
      self._run.log({key: value for key, value in row.items() if key not in ('seed', 'round')},
                    step=int(row['round']))

  def close(self):
    self._run.finish()


open_seed = Run
