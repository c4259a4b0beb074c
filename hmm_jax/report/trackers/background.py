"""Trackers at work beside the training, which neither waits for them nor ends with them."""

from collections.abc import Callable, Iterable, Mapping
import queue
import threading

from hmm_jax.report.screen import complain
from hmm_jax.report.trackers import Channel, Tracked

# Seconds that the end of a run waits for what is still to be sent (our choice): a cluster that
# stops a job gives it 30 or more, and what is missing is sent when the command is given again.
PATIENCE = 20.0


class Background:
  """One tracker of a run, in a thread of its own.

  Whatever fails is one line on stderr, and nothing more is sent.

  Args:
    name: of the tracker.
    open_seed: as of `trackers.opener`.
    run: what is tracked.
  """

  def __init__(self, name: str, open_seed: Callable[[Tracked, int], Channel], run: Tracked):
    self.name, self.sent = name, 0
    self.places: list[str] = []  # where to look
    self._open, self._run = open_seed, run
    self._channels: dict[int, Channel] = {}
    self._numbers: dict[int, int] = {}
    self._over = self._complained = False
    self._waiting: queue.SimpleQueue = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._work, name=f'tracker {name}', daemon=True)
    self._thread.start()

  def write(self, rows: Iterable[Mapping]):
    """Hands over rows of metrics.csv, all from the first on; returns at once."""
    for row in rows:
      self._waiting.put(dict(row))

  def close(self, patience: float = PATIENCE) -> bool:
    """Waits until all is sent; returns whether it is."""
    self._waiting.put(None)
    self._thread.join(patience)
    if self._thread.is_alive():
      self._complain(f'not all was sent within {patience:g} s')
    return self._over

  def _work(self):
    try:
      while (row := self._waiting.get()) is not None:
        self._send(row)
      for channel in self._channels.values():
        channel.close()
      self._over = True
    except Exception as error:  # Whatever a disk, a network or a tool does.
      self._complain(f'{type(error).__name__}: {error}')

  def _send(self, row):
    seed = row['seed']
    if seed not in self._channels:
      self._channels[seed] = self._open(self._run, seed)
      if self._channels[seed].place not in self.places:
        self.places.append(self._channels[seed].place)
    number = self._numbers.get(seed, 0)
    self._channels[seed].write(number, row)
    self._numbers[seed] = number + 1
    self.sent += 1

  def _complain(self, why):
    if self._complained:
      return
    self._complained = True
    complain(f'warning: track={self.name} goes on no more ({" ".join(why.split())}); the run '
             'does, and the same command sends what is missing')
