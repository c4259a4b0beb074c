"""Saved runs: config, metrics, states, models and predictions from the folder of a run."""

from collections.abc import Callable
from functools import cached_property
import os
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from hmm_jax import tree
from hmm_jax.experiment import build, federation, more_seeds
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.archive import Archive
from hmm_jax.experiment.devices import in_32_bits
from hmm_jax.experiment.evaluate import STACKED
from hmm_jax.experiment.run import Progress
from hmm_jax.experiment.trainer import Trainer
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.types import Array, Dataset, Experiment, Federation, InputError, Mixture, Model, PyTree


class Run:
  """A run loaded from its folder, finished or not; properties are loaded or computed lazily.

  config:     the settings of the run.
  metrics:    the rows of metrics.csv, one per evaluation and seed.
  summary:    the content of summary.json; None for an unfinished run.
  dataset, federation, experiment: its data and experiment, rebuilt from the config.
  model:      the network.
  states:     states of the newest checkpoint, with a leading axis of seeds.
  """

  def __init__(self, folder: str, config: ConfigDict):
    self.folder, self.config = Workdir(folder), config

  @classmethod
  def load(cls, folder: str) -> 'Run':
    """Loads the run in a folder.

    Raises:
      InputError: the folder has no run, or its config is invalid.
    """
    place = more_seeds.whole(folder)
    saved = Workdir(place).read_json('config.json') if os.path.isdir(place) else None
    if saved is None:
      raise InputError(f'got {folder}; expected the folder of a run')
    config = configs.complete(saved)
    configs.check(config)
    return cls(place, config)

  @property
  def metrics(self) -> list[dict]:
    return self.folder.read_metrics()

  @property
  def summary(self) -> dict | None:
    return self.folder.read_json('summary.json')

  @property
  def seeds(self) -> list[int]:
    """The training seeds."""
    return list(range(self.config.seed, self.config.seed + self.config.seeds))

  @cached_property
  def dataset(self) -> Dataset:
    return federation.dataset(self.config)

  @cached_property
  def federation(self) -> Federation:
    made = federation.federation(self.config, self.dataset)
    self._archive.check_data(federation.fingerprint(self.config, made))
    return made

  @cached_property
  def model(self) -> Model:
    return build.model(self.config, self.dataset, self.federation)

  @cached_property
  def experiment(self) -> Experiment:
    return build.experiment(self.config, self.dataset, self.federation)

  @cached_property
  @in_32_bits
  def trainer(self) -> Trainer:
    return Trainer(self.experiment)

  @property
  def rounds(self) -> int:
    """The number of rounds at the newest checkpoint.

    Raises:
      InputError: there is no checkpoint, or a damaged one.
    """
    newest = self._archive.newest()
    if newest is None:
      raise InputError(f'got {self.folder.path} without a checkpoint; expected the folder of a '
                       'run with a checkpoint')
    return newest.round

  @cached_property
  @in_32_bits
  def states(self) -> PyTree:
    shapes = self.trainer.shapes
    like = Progress(shapes, shapes if self.config.keep_best else ())
    while True:
      rounds = self.rounds
      try:
        return self.trainer.place(self._archive.restore(rounds, like).states)
      except InputError:
        if self.rounds == rounds:
          raise  # Otherwise the run goes on, and has removed this checkpoint meanwhile.

  @in_32_bits
  def models(self, seed: int | None = None) -> dict[str, Any]:
    """Returns the models of one seed: {'global': variables, 'clients': stacked, ...}.

    Args:
      seed: a training seed; None for the first.

    Raises:
      InputError: an unknown seed, or no checkpoint.
    """
    if seed is not None and seed not in self.seeds:
      raise InputError(f'got {self.folder.path}@{seed}; expected one of its seeds '
                       f'{", ".join(map(str, self.seeds))}')
    place = 0 if seed is None else self.seeds.index(seed)
    return jax.tree.map(np.asarray, self.trainer.views(self.states, place))

  @in_32_bits
  def predict(self, x: PyTree, *, view: str = 'global', client: int | None = None,
              seed: int | None = None) -> Array:
    """Returns class probabilities for inputs in the stored format: [B, C] float32.

    Args:
      x: [B, ...], such as uint8 images.
      view: key of `models`.
      client: position of the client whose model is used; needed for a view of stacked models.
      seed: as in `models`.

    Raises:
      InputError: an unknown view, or a stacked view without a client.
    """
    views = self.models(seed)
    if view not in views:
      raise InputError(f'got view={view}; expected one of {", ".join(views)}')
    variables = views[view]
    if view not in STACKED:
      return self._probabilities(variables, x)
    own = _own_place(view, client, len(self.federation.clients.id))
    if isinstance(variables, Mixture):
      each = jnp.stack([self._probabilities(tree.take(variables.models, m), x)
                        for m in range(variables.weights.shape[1])])
      return jnp.einsum('m,mbc->bc', variables.weights[own], each)
    return self._probabilities(tree.take(variables, own), x)

  @cached_property
  def _probabilities(self) -> Callable:
    return jax.jit(lambda variables, x: jax.nn.softmax(self.model.apply(variables, x)[0]))

  @cached_property
  def _archive(self) -> Archive:
    return Archive(self.folder)


def _own_place(view, client, total) -> int:
  """Returns the position of a client's own model."""
  if client is None:
    raise InputError(f'got view={view} without a client; expected client from 0 to {total - 1}')
  if not 0 <= client < total:
    raise InputError(f'got client={client}; expected from 0 to {total - 1}')
  return client
