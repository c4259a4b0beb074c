"""Evaluation of merged models, with the network and data of a config."""

from collections.abc import Mapping
import os
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from hmm_jax.client import mappers
from hmm_jax.client.scoring import score_rows
from hmm_jax.experiment import blueprint, build, federation
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.report import landscape
from hmm_jax.types import Array, Examples, InputError, Model, PyTree


class Bench(NamedTuple):
  """A network, with validation examples for merging and test examples for evaluation."""

  model: Model
  examples: Examples
  held_out: Array  # [T] indices of validation examples, for merges that learn
  test: Array  # [T'] indices of test examples
  about: Mapping[str, Any] = MappingProxyType({})  # what the network is built from


def read_config(path: str) -> ConfigDict:
  """Reads a config file with get_config, FILE.py or FILE.py:ARGUMENTS, or the config of a run.

  Raises:
    InputError: there is no config, or it is invalid.
  """
  path = os.path.expanduser(path)
  saved = Workdir(path).read_json('config.json') if os.path.isdir(path) else None
  if saved is None and '.py' not in path:
    raise InputError(f'got {path}; expected a config file, or the folder of a run')
  config = configs.complete(configs.read(path) if saved is None else saved)
  configs.check(config)
  return config


def bench(path: str) -> Bench:
  """Builds the network and data of a config, to evaluate models.

  Raises:
    InputError: an invalid config or data set.
  """
  config = read_config(path)
  data = federation.dataset(config)
  federated = federation.federation(config, data)
  about = blueprint.describe(config, data, federated)
  return Bench(build.augmented(config, about), *jax.device_put(
      (federated.examples, federated.validation.rows, federated.test.rows)), about)


def score(bench: Bench, variables: PyTree) -> dict[str, float]:
  """Returns the task's metrics of one model on the test examples, and its mean loss."""
  of = lambda *given: score_rows(bench.model, mappers.one_by_one(), *given, 512)
  scores = jax.jit(of)(variables, bench.examples, bench.test)
  means = {name: np.asarray(x.mean(axis=0)) for name, x in scores.items()}
  found = {**bench.model.task.metrics(means), 'loss': means['loss']}
  return {name: float(value) for name, value in found.items()}


def barrier(bench: Bench, a: PyTree, b: PyTree) -> float:
  """Returns the barrier of the test loss between two models."""
  return landscape.interpolate(bench.model, a, b, bench.examples, bench.test,
                               mapper=mappers.one_by_one()).barrier


def check_like(bench: Bench, variables: PyTree, path: str):
  """Raises InputError unless a model has the parameters of the bench's network."""
  wanted = bench.model.shapes
  shapes = lambda of: {jax.tree_util.keystr(path): leaf.shape
                       for path, leaf in jax.tree.leaves_with_path(of)}
  ours, theirs = shapes(wanted), shapes(variables)
  differ = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
  if differ:
    raise InputError(f'got {path} with {differ[0]} of shape {theirs.get(differ[0], "none")}; '
                     f'expected {ours.get(differ[0], "none")}, as in the network of --evaluate')
