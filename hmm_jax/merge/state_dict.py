"""Merges state dicts: parameters by an operator, running statistics pooled or recalibrated.

A model is a dict of named tensors, of this library or of PyTorch. What says nothing of a model is
taken from the first: integers that are equal in all, or count, and floats that are equal in all and
have infinities, such as masks.
"""

from collections.abc import Callable, Mapping
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.merge.evaluation import Bench
from hmm_jax.merging.average import normalized
from hmm_jax.merging.batch_norm import pool, recalibrate
from hmm_jax.merging.batches import epoch
from hmm_jax.models import files
from hmm_jax.registry import Operator
from hmm_jax.types import Array, Key

_COUNTERS = ('num_batches_tracked', 'step', 'steps', 'global_step', 'count', 'counter', 'epoch',
             'iteration', 'num_updates')
_RUNNING = ('running_mean', 'running_var', 'num_batches_tracked')


def merge(operator: Operator, how: Callable, stacked: dict[str, Array],
          base: dict[str, Array] | None, key: Key, *, on: Bench | None,
          shares: Array, batch: int) -> dict[str, Array]:
  """Merges K models.

  Args:
    operator: record of the operator.
    how: the merge function, made by `operator.make`.
    stacked: {name: [K, ...]}.
    base: {name: [...]}, for operators that need it.
    key: seeds random draws.
    on: the network and held-out examples, for operators that need them; running statistics are
      then recalibrated on these examples.
    shares: [K], weights of the models in pooled running statistics.
    batch: examples per minibatch, for operators that need data.

  Returns:
    {name: [...]}.
  """
  if 'network' in operator.needs:
    merged = _learned(how, stacked, base, key, on, batch)
  else:
    names = [name for name, x in stacked.items() if is_parameter(name, x)]
    parameters = lambda of: {name: of[name] for name in names}
    merged = how(parameters(stacked), base and parameters(base), key)
  return {name: merged[name] if name in merged else _pooled(name, stacked, shares)
          for name in stacked}


def shares(settings: Mapping[str, Any], count: int) -> Array:
  """Returns K models' weights in running statistics: those of the merge, or equal if any is < 0."""
  weights = settings.get('weights')
  if 't' in settings:
    weights = [1 - settings['t'], settings['t']]
  if not weights or min(weights) < 0 or not sum(weights):
    weights = [1] * count
  return jnp.array(normalized(weights))


def is_parameter(name: str, x: Array) -> bool:
  """Returns whether a tensor is a parameter, not a running statistic, a counter or a mask."""
  running = name.startswith('batch_stats/') or name.split('.')[-1] in _RUNNING
  return not running and is_merged(x)


def is_merged(x: Array) -> bool:
  """Returns whether a tensor is merged in any way; otherwise the first model's is taken."""
  return jnp.issubdtype(x.dtype, jnp.inexact) and bool(np.isfinite(np.asarray(x)).all())


def is_copied(name: str, stacked: Array) -> bool:
  """Returns whether a tensor [K, ...] is a counter, or the same in all models."""
  counts = re.split('[./]', name)[-1] in _COUNTERS and stacked[0].size == 1
  return (counts and jnp.issubdtype(stacked.dtype, jnp.integer)) or bool(
      (np.asarray(stacked) == np.asarray(stacked[:1])).all())


def _learned(how, stacked, base, key, on, batch):
  """Merges by an operator that runs the network on held-out examples."""
  rows = epoch(key, on.held_out, batch=batch)

  def work(stacked, start, examples, rows, key):
    params = how(on.model, stacked, start, examples, rows, key)
    return recalibrate.pooled(
        on.model, {**tree.take(stacked, 0), 'params': params}, examples, rows)

  return files.flatten(jax.jit(work)(
      files.unflatten(stacked), base and files.unflatten(base), on.examples, rows, key))


def _pooled(name, stacked, shares):
  """Pools a running statistic; what is not merged is taken from the first model."""
  x = stacked[name]
  if not is_merged(x):
    return x[0]
  mean = stacked.get(name.removesuffix('var') + 'mean')
  if not name.endswith('var') or mean is None or mean.shape != x.shape:
    return tree.mix(shares, x)
  return pool.pool(shares, {'mean': mean, 'var': x})['var']
