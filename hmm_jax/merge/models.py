"""Merges saved models: the functions behind `python -m hmm_jax.merge` and `hmm_jax.merge`."""

from collections.abc import Mapping, Sequence
import itertools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.data.files import UNPACK_LIMIT, Limit
from hmm_jax.experiment.devices import in_32_bits
from hmm_jax.merge import evaluation, load, lora, state_dict
from hmm_jax.merging import OPERATORS
from hmm_jax.models import files
from hmm_jax.registry import Operator, checked, find
from hmm_jax.types import InputError

# The weights of a model and its base have a cosine well above 0; too few weights tell nothing.
_MIN_COSINE, _MIN_WEIGHTS = 0.1, 1000


class Merged(NamedTuple):
  """A merged model, {name: tensor}, with the models that it was merged from."""

  merged: dict
  stacked: dict  # {name: [K, ...]}
  on: evaluation.Bench | None  # network and data, if given
  metadata: dict[str, str]  # that all files share
  pairs: Sequence[lora.Pair] = ()
  cut: float = 0.0  # largest share of a pair's product that its rank cuts off


def merge(method: str, models: Sequence[str], *, base: str | None = None,
          settings: Mapping[str, Any] | None = None, evaluate: str | None = None, seed: int = 0,
          batch: int = 64, lora_rank: int = 0, unpack_limit: float = 0.0,
          out: str | None = None) -> dict:
  """Merges saved models by an operator.

  Args:
    method: name of an operator, or a reference to the record of a user's operator.
    models: paths of safetensors or npz files, or folders of runs (FOLDER@SEED).
    base: the model that all were trained from, for operators that need it.
    settings: settings of the operator; `weights` are one number per model.
    evaluate: config file or folder of a run, for operators that need a network and data.
    seed: seed of random draws.
    batch: examples per minibatch, for operators that need data.
    lora_rank: rank of the merged pairs, for models of LoRA pairs; see hmm_jax/merge/lora.py.
    unpack_limit: GiB that a compressed file may unpack to; 0: a quarter of the memory.
    out: path of the file to write, .safetensors or .npz.

  Returns:
    {name: tensor}.

  Raises:
    InputError: an unknown operator, incompatible models, or a missing need of the operator.
  """
  operator = find('method', method, OPERATORS, Operator)
  if 'base' in operator.needs and base is None:
    raise InputError(f'got method={method} without base; expected base=PATH of the model that all '
                     'were trained from')
  if 'network' in operator.needs and evaluate is None:
    raise InputError(f'got method={method} without evaluate; expected evaluate=PATH of a config '
                     'file or the folder of a run, for its network and data')
  if out:
    files.check_target(out := os.path.expanduser(out))
  made = merge_files(operator, checked(operator, settings or {}, 'settings'), models, base=base,
                     evaluate=evaluate, seed=seed, batch=batch, lora_rank=lora_rank,
                     unpack_limit=unpack_limit)
  if out:
    files.save(out, made.merged, made.metadata)
  return made.merged


@in_32_bits
def merge_files(operator: Operator, settings: Mapping[str, Any], models: Sequence[str], *,
                base: str | None, evaluate: str | None, seed: int, batch: int,
                lora_rank: int, unpack_limit: float = 0.0) -> Merged:
  """Merges saved models; arguments are those of `merge`, already checked."""
  UNPACK_LIMIT['unpack_limit'].check('unpack_limit', unpack_limit)
  how = operator.make(**settings)
  on = evaluation.bench(evaluate) if evaluate else None
  if on and 'network' in operator.needs and not len(on.held_out):
    raise InputError(f'got --evaluate={evaluate} without validation examples; expected '
                     'partition.validation above 0')
  limit = Limit(unpack_limit, 'unpack_limit')
  stacked, metadata = load.load(models, limit)
  start = load.load_base(base, models[0], stacked, limit) if base else None
  pairs = lora_pairs(stacked, lora_rank, members=len(models) + bool(base))
  folded, origin = lora.fold(stacked, pairs), start and lora.fold(start, pairs)
  check_models(folded, origin, models, base)
  if on:
    evaluation.check_like(on, files.unflatten(tree.take(stacked, 0)), models[0])
  merged = state_dict.merge(
      operator, how, folded, origin, jax.random.key(seed), on=on, batch=batch,
      shares=state_dict.shares(settings, len(models)))
  check_finite(merged, folded)
  if not pairs:
    return Merged(merged, stacked, on, metadata)
  merged, cut = lora.unfold(merged, pairs, lora_rank, stacked)
  return Merged(merged, stacked, on, metadata, pairs, cut)


def lora_pairs(stacked: dict, rank: int, *, members: int) -> list[lora.Pair]:
  """Returns the LoRA pairs of the models.

  Args:
    stacked: {name: [K, ...]}.
    rank: of the merged pairs; 0 where there are none.
    members: the models, and the base if there is one.

  Raises:
    InputError: pairs of several scales, or a rank that does not go with them.
  """
  pairs = lora.pairs({name: x.shape[1:] for name, x in stacked.items()})
  ours = max((pair.rank for pair in pairs), default=0)
  if pairs and not rank:
    raise InputError(f'got the LoRA pair {pairs[0].a} and {pairs[0].b}, whose factors can\'t be '
                     f'merged one by one; expected --lora_rank={ours}, or any other rank up to the '
                     f'exact {ours * members}, to merge their products')
  if not 0 <= rank <= ours * members:
    raise InputError(f'got lora_rank={rank} for models with {len(pairs)} LoRA pairs; expected a '
                     f'rank up to the exact {ours * members}')
  lora.check_scales(stacked, pairs)
  return pairs


def check_models(stacked: dict, base: dict | None, models: Sequence[str], path: str | None):
  """Raises InputError without parameters, for integers that differ, or for an unrelated base."""
  names = [name for name, x in stacked.items() if state_dict.is_parameter(name, x)]
  if not names:
    raise InputError(f'got {models[0]} without parameters; expected tensors of floats')
  for name, x in stacked.items():
    if not jnp.issubdtype(x.dtype, jnp.inexact) and not state_dict.is_copied(name, x):
      raise InputError(f'got models that differ in {name}, of {x.dtype}; expected floats, as other '
                       'values can\'t be merged: dequantize the models first')
  if not base:
    return
  weights = [name for name in names if base[name].ndim > 1]
  if sum(base[name].size for name in weights) < _MIN_WEIGHTS:
    return
  for k, model in enumerate(models):
    products = [_products(base[name], stacked[name], k) for name in weights]
    cross, start, own = np.sum(products, axis=0)
    cosine = cross / np.sqrt(max(start * own, 1e-30))
    if start and cosine < _MIN_COSINE:
      raise InputError(f'got --base={path}, whose weights have a cosine of {cosine:.3f} with '
                       f'those of {model}; expected the model that all were trained from')


def check_finite(merged: dict, stacked: dict):
  """Raises InputError if the merge of the models made a NaN or an infinity."""
  for name, x in merged.items():
    if not load.finite(x) and state_dict.is_merged(stacked[name]):
      raise InputError(f'got NaN or infinity in {name} of the merged model; expected settings and '
                       'models whose merge is finite')


def scores(made: Merged, name: str, paths: Sequence[str]) -> list[list[str]]:
  """Returns table rows: metrics and loss of each model and the merged one, and the barriers of the
  loss between consecutive models."""
  assert made.on
  models = [files.unflatten(one) for one in tree.unstack(made.stacked)]
  shown = lambda score: [f'{value:.4f}' for value in score.values()]
  rows = [[path, *shown(evaluation.score(made.on, model))]
          for path, model in zip(paths, models, strict=True)]
  rows.append([name, *shown(evaluation.score(made.on, files.unflatten(made.merged)))])
  for i, (a, b) in enumerate(itertools.pairwise(models)):
    empty = [''] * len(made.on.model.task.names)
    rows.append([f'barrier between models {i + 1} and {i + 2}', *empty,
                 f'{evaluation.barrier(made.on, a, b):.4f}'])
  return rows


def _products(start, stacked, k):
  """Returns the inner products of base and k-th model, base and base, k-th model and itself."""
  flat = lambda x: np.asarray(x, np.float32).ravel()
  start, own = flat(start), flat(np.asarray(stacked)[k])
  return np.array([np.vdot(start, own), np.vdot(start, start), np.vdot(own, own)])
