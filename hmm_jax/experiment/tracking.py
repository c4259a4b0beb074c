"""The trackers of a run: what they are told, and what they have got."""

from collections.abc import Callable, Generator, Mapping
import contextlib
import os
import secrets

from ml_collections import ConfigDict

from hmm_jax.experiment import config as configs
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import trackers
from hmm_jax.report.screen import Screen
from hmm_jax.report.trackers.background import Background
from hmm_jax.types import SaveError

# {'id': of the run, which no name or folder is, 'sent': {tracker: rows that it has got}}
_FILE = 'track.json'


@contextlib.contextmanager
def tracked(names: tuple[str, ...], settings: Mapping, workdir: Workdir, rows: list[dict],
            screen: Screen) -> Generator[Callable[[list[dict]], None]]:
  """Yields a function that hands new rows of metrics.csv to trackers; they have those so far.

  Args:
    names: of the trackers.
    settings: the run's config.
    workdir: of the run; its id is kept there.
    rows: so far.
    screen: is told at the end where to look.
  """
  if not names:
    yield lambda new: None
    return
  said = _read(workdir)
  run = trackers.Tracked(said['id'], label(workdir.path), configs.flat(settings), workdir.path)
  openers = {name: trackers.opener(name) for name in names}
  workdir.write_json(_FILE, said)
  at_work = [Background(name, open_seed, run) for name, open_seed in openers.items()]

  def write(new):
    for tracker in at_work:
      tracker.write(new)

  write(rows)
  try:
    yield write
  finally:
    said['sent'] |= {tracker.name: tracker.sent for tracker in at_work if tracker.close()}
    for tracker in at_work:
      for place in tracker.places:
        screen.say(f'{tracker.name}: {place}')
    with contextlib.suppress(SaveError):  # Then what is sent is compared once more.
      workdir.write_json(_FILE, said)


def catch_up(config: ConfigDict, workdir: Workdir, screen: Screen):
  """Sends the rows of a finished run to the trackers that have not got them all."""
  rows, sent = workdir.read_metrics(), _read(workdir)['sent']
  names = tuple(name for name in trackers.named(config.track) if sent.get(name) != len(rows))
  with tracked(names, config.to_dict(), workdir, rows, screen):
    pass


def label(path: str) -> str:
  """Returns what a run is called by its folder; a comparison run after its main run, too."""
  parent, name = os.path.split(os.path.abspath(path))
  if os.path.basename(parent) != 'references':
    return name
  return f'{os.path.basename(os.path.dirname(parent))}/{name}'


def _read(workdir):
  return workdir.read_json(_FILE, ('id', 'sent')) or {'id': secrets.token_hex(6), 'sent': {}}
