"""Whole models merged: parameters by an operator, running statistics pooled or estimated anew.

A model is a dict of named tensors, of this library or of PyTorch. What is no float, such as a
counter of batches, is the first model's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merge import files
from hmm_jax.merge.evaluation import Bench
from hmm_jax.merging.average import normalized
from hmm_jax.merging.batch_norm import pool, recalibrate
from hmm_jax.merging.search import minibatches
from hmm_jax.registry import Operator
from hmm_jax.types import Array, Key

_RUNNING = ('running_mean', 'running_var', 'num_batches_tracked')


def merge(operator: Operator, how: Callable, stacked: dict[str, Array],
          base: dict[str, Array] | None, key: Key, *, on: Bench | None,
          shares: Array, batch: int) -> dict[str, Array]:
  """Merges K models.

  Args:
    operator: its record.
    how: what it makes.
    stacked: {name: [K, ...]}.
    base: {name: [...]}, for operators that need it.
    key: of what is drawn.
    on: the network and the held-out rows, for operators that need them; running statistics are
      then estimated on these rows.
    shares: [K], of the models in running statistics that are pooled.
    batch: rows at a time, for operators that need data.

  Returns:
    {name: [...]}.
  """
  if 'network' in operator.needs:
    merged = _learned(how, stacked, base, key, on, batch)
  else:
    parameters = lambda of: {name: x for name, x in of.items() if is_parameter(name, x)}
    merged = how(parameters(stacked), base and parameters(base), key)
  return {name: merged[name] if name in merged else _pooled(name, stacked, shares)
          for name in stacked}


def shares(settings: Mapping[str, Any], count: int) -> Array:
  """Returns K models' shares in running statistics: their weights, equal if one is below 0."""
  weights = settings.get('weights')
  if 't' in settings:
    weights = [1 - settings['t'], settings['t']]
  if not weights or min(weights) < 0 or not sum(weights):
    weights = [1] * count
  return jnp.array(normalized(weights))


def is_parameter(name: str, x: Array) -> bool:
  """Tells parameters from running statistics and counters."""
  running = name.startswith('batch_stats/') or name.split('.')[-1] in _RUNNING
  return jnp.issubdtype(x.dtype, jnp.inexact) and not running


def _learned(how, stacked, base, key, on, batch):
  """Merges by what the network does on held-out rows."""
  rows = minibatches(key, on.held_out, batch=batch, steps=-(-len(on.held_out) // batch))

  def work(stacked, start, examples, rows, key):
    params = how(on.model, stacked, start, examples, rows, key)
    return recalibrate.recalibrate(
        on.model, {**tree.take(stacked, 0), 'params': params}, examples, rows)

  return files.flatten(jax.jit(work)(
      files.unflatten(stacked), base and files.unflatten(base), on.examples, rows, key))


def _pooled(name, stacked, shares):
  """Pools a running statistic; anything else is that of the first model."""
  x = stacked[name]
  if not jnp.issubdtype(x.dtype, jnp.inexact):
    return x[0]
  mean = stacked.get(name.removesuffix('var') + 'mean')
  if not name.endswith('var') or mean is None or mean.shape != x.shape:
    return tree.mix(shares, x)
  return pool.pool(shares, {'mean': mean, 'var': x})['var']
