"""The law of placement: where seeds and clients are computed changes no result but by rounding.

It is tried on the program of a run, with its shardings and its donated buffers.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np

from hmm_jax.check.methods import Trial, same
from hmm_jax.experiment import build
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.types import Experiment, PyTree, Scores

SEEDS, ROUNDS = (0, 7), 2


class Placement(NamedTuple):
  """One way to place a run: `mapper` and `seed_map` of its config, on the first devices."""

  seed_map: str
  devices: int
  mapper: str


PLAIN = Placement('in_turn', 1, 'map')
# Everything at once: vectorized seeds, of clients on several devices, of which some stay idle.
HARDEST = (Placement('together', 2, 'auto'), Placement('together', 3, 'sharded'))
# With these, every two values of two fields occur together.
OTHERS = (
    Placement('together', 1, 'auto'), Placement('in_turn', 1, 'vmap'),
    Placement('together', 1, 'sharded'), Placement('in_turn', 2, 'map'),
    Placement('together', 2, 'vmap'), Placement('in_turn', 2, 'sharded'),
    Placement('in_turn', 3, 'auto'), Placement('together', 3, 'map'),
    Placement('in_turn', 3, 'vmap'))


def placement_does_not_matter(trial: Trial, places: Iterable[Placement] = HARDEST):
  """A run of two seeds on several devices gives what it gives on one, one client after another."""
  wanted = results(trial, PLAIN)
  for place in places:
    same(results(trial, place), wanted,
         f'with seed_map={place.seed_map} and mapper={place.mapper} on {place.devices} devices '
         'results are others than with in_turn and map on one')


def results(trial: Trial, place: Placement) -> PyTree:
  """Returns the states after a short run, and after its finish, and all metrics."""
  # Inside a device, `sharded` vectorizes clients here, and `auto` doesn't.
  config = configs.updated(trial.config, {
      'seed_map': place.seed_map, 'mapper': place.mapper,
      'chunk': 2 if place.mapper == 'sharded' else 0}, 'the law')
  spread, sharding = build.devices(config, jax.devices()[:place.devices])
  algorithm = trial.make(spread(build.mapper(config)))
  trainer = Trainer(Experiment(
      algorithm, jax.device_put(trial.federation, sharding), lambda views: Scores({}, {}), '',
      SEEDS, build.SEED_MAPS[place.seed_map], sharding, ROUNDS, ROUNDS))
  [chunk] = trainer.rounds(trainer.initial(), 0)
  finished = trainer.finish(chunk.states) if algorithm.finish else ()
  return jax.tree.map(np.asarray, (chunk.states, chunk.metrics, finished))


LAWS = {'placement does not matter': placement_does_not_matter}
