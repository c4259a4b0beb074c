"""Saved runs: config, metrics, states, models and predictions from the folder of a run."""

from collections.abc import Callable, Mapping
from functools import cached_property
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from hmm_jax import tree
from hmm_jax.experiment import blueprint, build, federation, more_seeds, outline
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.archive import Archive
from hmm_jax.experiment.devices import in_32_bits
from hmm_jax.experiment.evaluate import STACKED
from hmm_jax.experiment.predictor import Predictor, predictions
from hmm_jax.experiment.run import Progress
from hmm_jax.experiment.views import Views, with_data, without_data
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.types import Array, Dataset, Experiment, Federation, InputError, Mixture, Model, PyTree

FOR_ALL = ('global', 'merged')  # Views with a single model for all clients.


class Run:
  """A run loaded from its folder, finished or not; properties are loaded or computed lazily.

  config:     the settings of the run.
  metrics:    the rows of metrics.csv, one per evaluation and seed.
  summary:    the content of summary.json; None for an unfinished run.
  dataset, federation, experiment: its data and experiment, rebuilt from the config.
  model:      the network; `about` says what it is built from.
  states:     states of the newest checkpoint, with a leading axis of seeds.
  """

  def __init__(self, folder: str, config: ConfigDict):
    self.folder, self.config = Workdir(folder), config

  @staticmethod
  def has(folder: str) -> bool:
    """Returns whether a folder is that of a run."""
    return os.path.isfile(os.path.join(folder, 'config.json'))

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
  def about(self) -> Mapping[str, Any]:
    """What the network is built from: a blueprint, without the data set if the run has kept it."""
    kept = self.folder.read_json('model.json', blueprint.KEYS)
    if kept:
      return blueprint.NEWER | kept
    return blueprint.describe(self.config, self.dataset, self.federation)

  @cached_property
  def model(self) -> Model:
    return build.augmented(self.config, self.about)

  @cached_property
  def experiment(self) -> Experiment:
    return build.experiment(self.config, self.dataset, self.federation)

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
    shapes = self._method.shapes
    like = Progress(shapes, shapes if self.config.keep_best else ())
    while True:
      rounds = self.rounds
      try:
        return self._method.place(self._archive.restore(rounds, like).states)
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
    place = self.seeds.index(self.read_seed(seed))
    return jax.tree.map(np.asarray, self._method.of(self.states, place))

  def model_for_all(self, seed: int | None = None) -> tuple[str, PyTree]:
    """Returns the model that is common to all clients, and the view that it is.

    Raises:
      InputError: as of `models`, or the method makes no such model.
    """
    views = self.models(seed)
    for name in FOR_ALL:
      if name in views:
        return name, views[name]
    raise InputError(
        f'got {self.folder.path}, whose algorithm={self.config.algorithm} has no model for all '
        f'clients; expected a run with a view among {", ".join(FOR_ALL)}, or the model of one '
        'client, as `hmm_jax export` writes with --client=ID')

  def read_seed(self, seed: int | str | None) -> int:
    """Returns a training seed, the first for None; InputError if it is none of the run's."""
    if seed is not None and str(seed) not in map(str, self.seeds):
      raise InputError(f'got {self.folder.path}@{seed}; expected one of its seeds '
                       f'{", ".join(map(str, self.seeds))}')
    return self.seeds[0] if seed is None else int(seed)

  def initial_file(self, seed: int | None = None) -> str:
    """Returns the file of the model that a seed began from."""
    path = self.folder.initial(seed := self.read_seed(seed))
    if not os.path.isfile(path):
      raise InputError(f'got {self.folder.path}@{seed}/initial, but there is no {path}; expected '
                       'a run that keeps its initial models, as earlier releases did not')
    return path

  @property
  def client_ids(self) -> list[int]:
    """The ids of the clients, by position."""
    kept = self.about.get('federation')
    return kept['clients']['id'] if kept else np.asarray(self.federation.clients.id).tolist()

  def place_of(self, client: int) -> int:
    """Returns the position of a client by its id; InputError if there is none."""
    ids = self.client_ids
    if client not in ids:
      listed = f'one from {min(ids)} to {max(ids)}' if len(ids) > 10 else ', '.join(map(str, ids))
      raise InputError(f'got client={client}; expected the id of a client: {listed}')
    return ids.index(client)

  @in_32_bits
  def predict(self, x: PyTree, *, view: str = 'global', client: int | None = None,
              seed: int | None = None) -> Array:
    """Returns predictions for inputs in the stored format, as of `Predictor.predict`.

    Args:
      x: [B, ...], such as uint8 images.
      view: key of `models`.
      client: position of the client whose model is used; needed for a view of stacked models.
      seed: as in `models`.

    Raises:
      InputError: an unknown view, a stacked view without a client, or inputs of another kind.
    """
    return self.predictor(self.models(seed), view, client).predict(x)

  def predictor(self, views: Mapping[str, Any], view: str, client: int | None = None) -> Predictor:
    """Returns one of the models of a seed, to predict with.

    Args:
      views: from `models`.
      view, client: as of `predict`.

    Raises:
      InputError: as of `predict`.
    """
    if view not in views:
      raise InputError(f'got view={view}; expected one of {", ".join(views)}')
    variables, mixture = views[view], None
    if view in STACKED:
      own = _own_place(view, client, len(views[view].weights if isinstance(views[view], Mixture)
                                         else jax.tree.leaves(views[view])[0]))
      if isinstance(variables, Mixture):
        variables, mixture = variables.models, variables.weights[own]
      else:
        variables = tree.take(variables, own)
    return Predictor(self.about, variables, mixture, model=self.model, forward=self._forward)

  @cached_property
  def _forward(self) -> Callable:
    return predictions(self.model)

  @cached_property
  @in_32_bits
  def _method(self) -> Views:
    """What the models are made by: without the data of the run, unless they are made from these."""
    kept = self.about.get('federation')
    made = kept and without_data(self.config, self.model, outline.rebuild(kept))
    return made or with_data(self.experiment)

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
