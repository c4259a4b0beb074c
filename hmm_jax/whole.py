"""Whole models merged: parameters by an operator, running statistics pooled or estimated anew.

A model is a dict of named tensors, of this library or of PyTorch. What is no float, such as a
counter of batches, is the first model's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hmm_jax import tensors, tree
from hmm_jax.bench import Bench
from hmm_jax.merging import calibrate, statistics
from hmm_jax.merging.average import normalised
from hmm_jax.merging.operators import Operator
from hmm_jax.merging.search import minibatches
from hmm_jax.types import Array, Key

_RUNNING = ('running_mean', 'running_var', 'num_batches_tracked')
_BATCH = 64  # rows at a time, of methods that need data


def merge(operator: Operator, how: Callable, stacked: dict[str, Array],
          base: dict[str, Array] | None, key: Key, *, on: Bench | None,
          shares: Array) -> dict[str, Array]:
  """Merges K models.

  Args:
    operator: a row of the table.
    how: what it makes.
    stacked: {name: [K, ...]}.
    base: {name: [...]}, for operators that need it.
    key: of what is drawn.
    on: the network and the held-out rows, for operators that need them; running statistics are
      then estimated on these rows.
    shares: [K], of the models in running statistics that are pooled.

  Returns:
    {name: [...]}.
  """
  if 'network' in operator.needs:
    merged = _learnt(how, stacked, base, key, on)
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
  return jnp.array(normalised(weights))


def is_parameter(name: str, x: Array) -> bool:
  """Tells parameters from running statistics and counters."""
  running = name.startswith('batch_stats/') or name.split('.')[-1] in _RUNNING
  return jnp.issubdtype(x.dtype, jnp.inexact) and not running


def _learnt(how, stacked, base, key, on):
  """Merges by what the network does on held-out rows."""
  rows = minibatches(key, on.held_out, batch=_BATCH, steps=-(-len(on.held_out) // _BATCH))

  def work(stacked, start, examples, rows, key):
    params = how(on.model, stacked, start, examples, rows, key)
    return calibrate.recalibrate(
        on.model, {**tree.take(stacked, 0), 'params': params}, examples, rows)

  return tensors.flatten(jax.jit(work)(
      tensors.unflatten(stacked), base and tensors.unflatten(base), on.examples, rows, key))


def _pooled(name, stacked, shares):
  """Pools a running statistic; anything else is that of the first model."""
  x = stacked[name]
  if not jnp.issubdtype(x.dtype, jnp.inexact):
    return x[0]
  mean = stacked.get(name.removesuffix('var') + 'mean')
  if not name.endswith('var') or mean is None or mean.shape != x.shape:
    return tree.mix(shares, x)
  return statistics.pool(shares, {'mean': mean, 'var': x})['var']
