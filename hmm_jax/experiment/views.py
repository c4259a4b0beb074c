"""How the models of a saved state are made: by the method of a run, with its data or without."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from hmm_jax import tree
from hmm_jax.experiment import build
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.types import Experiment, Federation, Model, PyTree


class Views(NamedTuple):
  """What a method makes of its states.

  shapes: of the states of all seeds.
  place:  (states on the host) -> states on the devices.
  of:     (states, position of a seed) -> {view: models}.
  """

  shapes: PyTree
  place: Callable
  of: Callable


def with_data(experiment: Experiment) -> Views:
  """Makes the models of a run by its program."""
  trainer = Trainer(experiment)
  return Views(trainer.shapes, trainer.place, trainer.views)


def without_data(config: ConfigDict, model: Model, federated: Federation) -> Views | None:
  """Makes the models of a run from the outline of its federation.

  Returns:
    None for a method that makes models from examples, such as a fine-tuned one.
  """
  keys = jax.random.split(jax.random.key(0), config.seeds)
  try:
    made = build.method(config, model, build.mapper(config), federated)
    views = jax.jit(lambda state: made.views(state, federated))
    shapes = jax.eval_shape(jax.vmap(made.init, (0, None)), keys, federated)
    jax.eval_shape(lambda states: views(tree.take(states, 0)), shapes)
  except (TypeError, AttributeError):  # The outline has shapes in the place of arrays.
    return None
  return Views(shapes, jax.device_put, lambda states, s: views(tree.take(states, s)))
