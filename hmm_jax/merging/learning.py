"""Common parts of operators that learn merge weights on a network's predictions.

A merged model has no running statistics yet: each batch is normalized by its own (our choice).
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.merging import atlas, recombine, search
from hmm_jax.registry import Setting
from hmm_jax.types import Array, InputError, Key, Model, PyTree

# Sets of parameters that share a weight.
UNITS = {'model': atlas.whole, 'layer': recombine.layers, 'tensor': recombine.tensors}
BY = Setting('model', 'which parameters share a weight', choices=UNITS)
LR = Setting(0.05, 'learning rate of Adam', above=0)


def check(by: str, lr: float, name: str, count: int):
  """Raises InputError unless the settings of a search for weights are in range."""
  if by not in UNITS:
    raise InputError(f'got by={by}; expected one of {", ".join(UNITS)}')
  if not 0 < lr < math.inf:
    raise InputError(f'got lr={lr}; expected a finite number above 0')
  if count < 1:
    raise InputError(f'got {name}={count}; expected at least 1')


def adam(loss: Callable, start: Array, batches: PyTree, lr: float, project: Callable) -> Array:
  """Returns the coefficients that Adam reaches from `start`, with one step per batch."""
  run = search.gradient_search(optax.adam(lr)).run
  return run(loss, lambda c: jnp.float32(0), start, batches, None, project).c[-1]


def logits_of(model: Model, stacked: PyTree) -> Callable:
  """Returns (params, batch) -> logits, each batch normalized by its own statistics."""
  statistics = tree.statistics(tree.take(stacked, 0))
  return lambda params, batch: model.apply(
      {'params': params, **statistics}, batch.x, train=True, mask=batch.mask)[0]


def pooled(indices: Array) -> Array:
  """Returns the batches of all models together: [S, B]."""
  return indices.reshape(-1, indices.shape[-1])


def minibatches(key: Key, indices: Array, steps: int) -> Array:
  """Returns `steps` reshuffled minibatches of the size of the given ones, padding included."""
  return search.minibatches(key, indices.ravel(), batch=indices.shape[-1], steps=steps)


def unit_of(by: str, model: Model, stacked: PyTree) -> PyTree:
  """Returns the unit of each parameter."""
  return UNITS[by](model, tree.take(stacked, 0))['params']


def cast(params: PyTree, like: PyTree) -> PyTree:
  """Casts parameters to the dtypes of others."""
  return jax.tree.map(lambda x, y: x.astype(y.dtype), params, like)
