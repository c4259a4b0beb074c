"""Trackers: tools of others that keep and draw the metrics of runs, by the name in `track`.

Each is a file with `open_seed(run, seed) -> Channel`, one run of the tool for each training seed
(our choice). All of them draw curves of the same name over each other and average the runs of a
group, so metrics keep the names of metrics.csv, and two methods are compared without renaming.
"""

from collections.abc import Callable, Mapping
import importlib
from typing import Any, NamedTuple, Protocol

from hmm_jax.registry import suggestion
from hmm_jax.types import InputError


class Tracked(NamedTuple):
  """A run, as trackers see it.

  id:     that of no other run, the same whenever the run goes on.
  name:   of the group of its seeds.
  config: {'local.lr': 0.05, ...}.
  folder: of the run, for files of the tool.
  """

  id: str
  name: str
  config: Mapping[str, Any]
  folder: str

  def label(self, seed: int) -> str:
    return f'{self.name} seed {seed}'


class Channel(Protocol):
  """One seed's place in a tool."""

  @property
  def place(self) -> str:
    """Says in a line where to look."""
    ...

  def write(self, number: int, row: Mapping[str, float]):
    """Adds the row of metrics.csv that is its seed's `number`th; none that is there already."""
    ...

  def close(self):
    """Sends what is still waiting."""
    ...


class Tool(NamedTuple):
  """A tracker.

  module:  of hmm_jax.report.trackers, with `open_seed`; its `check` raises InputError where the
           tool is not set up.
  package: that it imports.
  """

  module: str
  package: str


TRACKERS = {
    'tensorboard': Tool('tensorboard', 'tensorboardX'),
    'wandb': Tool('wandb', 'wandb'),
    'mlflow': Tool('mlflow', 'mlflow'),
    'trackio': Tool('trackio', 'trackio'),
}


def named(track: str) -> tuple[str, ...]:
  """Reads the setting: names of trackers, separated by commas.

  Raises:
    InputError: an unknown name.
  """
  names = tuple(dict.fromkeys(filter(None, (name.strip() for name in track.split(',')))))
  for name in names:
    if name not in TRACKERS:
      raise InputError(f'got track={name}; expected names among {", ".join(TRACKERS)}'
                       + suggestion(name, TRACKERS))
  return names


def opener(name: str) -> Callable[[Tracked, int], Channel]:
  """Returns a tracker's `open_seed`.

  Raises:
    InputError: its package is not installed or can't be imported, or it is not set up.
  """
  tool = TRACKERS[name]
  try:
    module = importlib.import_module(f'hmm_jax.report.trackers.{tool.module}')
  except ImportError as error:
    raise InputError(f'got track={name}, but {error.name or tool.package} is not installed; '
                     f"expected pip install 'hmm_jax[{name}]'") from error
  except Exception as error:  # Whatever a broken installation does.
    raise InputError(f'got track={name}, but importing {tool.package} fails with '
                     f'{type(error).__name__}: {error}; expected it to be installed '
                     f"by pip install 'hmm_jax[{name}]'") from error
  if hasattr(module, 'check'):
    module.check()
  return module.open_seed
