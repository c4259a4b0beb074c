"""Saved models in, one model out: what the command and the library share."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.merge import evaluation, files, load, state_dict
from hmm_jax.merging import OPERATORS
from hmm_jax.registry import Operator, find
from hmm_jax.types import InputError

# Models of one base have weights with an angle in common; fewer of them say nothing.
_UNRELATED, _ENOUGH = 0.1, 1000


class Merged(NamedTuple):
  """A merged model, {name: tensor}, and what it was made from."""

  merged: dict
  stacked: dict
  on: evaluation.Bench | None  # network and data, if they were given


def merge(method: str, models: Sequence[str], *, base: str | None = None,
          settings: Mapping[str, Any] | None = None, evaluate: str | None = None, seed: int = 0,
          batch: int = 64, out: str | None = None) -> dict:
  """Merges saved models by an operator.

  Args:
    method: name of an operator, or a reference to one of somebody's own.
    models: paths of safetensors or npz files, or folders of runs (FOLDER@SEED).
    base: the model that all were trained from, for operators that need it.
    settings: of the operator; `weights` are one number for each model.
    evaluate: config file or folder of a run, for operators that need a network and data.
    seed: of what is drawn.
    batch: examples at a time, for operators that need data.
    out: path of a file to write, .safetensors or .npz.

  Returns:
    {name: tensor}.

  Raises:
    InputError: an unknown operator, models that do not fit, or what the operator lacks.
  """
  operator = find('method', method, OPERATORS, Operator)
  if 'base' in operator.needs and base is None:
    raise InputError(f'got method={method} without base; expected the model that all were trained '
                     'from')
  if 'network' in operator.needs and evaluate is None:
    raise InputError(f'got method={method} without evaluate; expected a config file or the folder '
                     'of a run, for its network and its data')
  made = merge_files(operator, settings or {}, models, base=base, evaluate=evaluate, seed=seed,
                     batch=batch)
  if out:
    files.save(out, made.merged)
  return made.merged


def merge_files(operator: Operator, settings: Mapping[str, Any], models: Sequence[str], *,
                base: str | None, evaluate: str | None, seed: int, batch: int) -> Merged:
  """Merges saved models; arguments as in `merge`, checked."""
  how = operator.make(**settings)
  on = evaluation.bench(evaluate) if evaluate else None
  if on and 'network' in operator.needs and not len(on.held_out):
    raise InputError(f'got --evaluate={evaluate} without validation examples; expected '
                     'partition.validation above 0')
  stacked = load.load(models)
  start = load.load_base(base, models[0], stacked) if base else None
  check_models(stacked, start, models, base)
  if on:
    evaluation.check_like(on, files.unflatten(tree.take(stacked, 0)), models[0])
  merged = state_dict.merge(
      operator, how, stacked, start, jax.random.key(seed), on=on, batch=batch,
      shares=state_dict.shares(settings, len(models)))
  check_finite(merged)
  return Merged(merged, stacked, on)


def check_models(stacked: dict, base: dict | None, models: Sequence[str], path: str | None):
  """Raises InputError unless there are parameters, and the base can be that of each model."""
  names = [name for name, x in stacked.items() if state_dict.is_parameter(name, x)]
  if not names:
    raise InputError(f'got {models[0]} without parameters; expected tensors of floats')
  weights = [name for name in names if base and base[name].ndim > 1]
  if sum(base[name].size for name in weights) < _ENOUGH:
    return
  for k, model in enumerate(models):
    products = [_products(base[name], stacked[name], k) for name in weights]
    cross, start, own = np.sum(products, axis=0)
    cosine = cross / np.sqrt(max(start * own, 1e-30))
    if start and cosine < _UNRELATED:
      raise InputError(f'got --base={path}, whose weights have a cosine of {cosine:.3f} with '
                       f'those of {model}; expected the model that all were trained from')


def check_finite(merged: dict):
  """Raises InputError if there is a NaN or an infinity."""
  for name, x in merged.items():
    if jnp.issubdtype(x.dtype, jnp.inexact) and not np.isfinite(np.asarray(x)).all():
      raise InputError(f'got NaN or infinity in {name} of the merged model; expected settings and '
                       'models whose merge is finite')


def scores(made: Merged, name: str, paths: Sequence[str]) -> list[list[str]]:
  """Scores each model and the merged one; the barrier is between neighbors in the list."""
  models = [files.unflatten(one) for one in tree.unstack(made.stacked)]
  shown = lambda score: [f'{value:.4f}' for value in score]
  rows = [[path, *shown(evaluation.score(made.on, model))]
          for path, model in zip(paths, models, strict=True)]
  rows.append([name, *shown(evaluation.score(made.on, files.unflatten(made.merged)))])
  for i, (a, b) in enumerate(itertools.pairwise(models)):
    rows.append([f'barrier between models {i + 1} and {i + 2}', '',
                 f'{evaluation.barrier(made.on, a, b):.4f}'])
  return rows


def _products(start, stacked, k):
  """Returns the inner products of the start and the k-th model, and of each with itself."""
  flat = lambda x: np.asarray(x, np.float32).ravel()
  start, own = flat(start), flat(np.asarray(stacked)[k])
  return np.array([np.vdot(start, own), np.vdot(start, start), np.vdot(own, own)])
