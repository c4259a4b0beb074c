"""Soups by what a network predicts on rows of held-out data.

What the factories return takes (model, stacked, base, examples, rows, key) and gives params. A
mixture has no running statistics yet: each batch is normalised by its own (our choice).
"""

from collections.abc import Callable
import math

import jax
from jax import lax
import optax

from hmm_jax.merging import atlas, recombine, search, soups
from hmm_jax.types import InputError

# What has weights of its own where they are learnt.
UNITS = {'model': atlas.whole, 'layer': recombine.layers, 'tensor': recombine.tensors}


def greedy_soup() -> Callable:
  """Returns the greedy soup by accuracy on the rows."""

  def apply(model, stacked, base, examples, rows, key):
    del base, key
    logits = _logits(model, stacked)

    def correct(params, own):
      x, y = _take(examples, own)
      return (logits(params, x).argmax(axis=-1) == y).mean()

    score = lambda params: lax.map(lambda own: correct(params, own), _pool(rows)).mean()
    return soups.greedy_soup(stacked['params'], score).params

  return apply


def learned_soup(*, by: str = 'model', lr: float = 0.05, epochs: int = 5) -> Callable:
  """Returns the learned soup by cross-entropy on the rows.

  Args:
    by: what has weights of its own, one of `UNITS`.
    lr: of Adam.
    epochs: times that the rows are seen.
  """
  _check(by, lr, 'epochs', epochs)

  def apply(model, stacked, base, examples, rows, key):
    del base
    logits = _logits(model, stacked)

    def loss(params, own):
      x, y = _take(examples, own)
      return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    batches = _minibatches(key, rows, epochs * len(_pool(rows)))
    return soups.learned_soup(stacked['params'], loss, batches,
                              unit=_unit(by, model, stacked), lr=lr).params

  return apply


def adamerging(*, by: str = 'layer', initial: float = 0.3, lr: float = 1e-3,
               steps: int = 500) -> Callable:
  """Returns AdaMerging by the entropy of predictions on the rows, whose labels are not read.

  Args:
    by: what has a lambda of its own, one of `UNITS`.
    initial: lambda before the first step, from 0 to 1.
    lr: of Adam.
    steps: of one batch each.
  """
  _check(by, lr, 'steps', steps)
  if not 0 <= initial <= 1:
    raise InputError(f'got initial={initial}; expected from 0 to 1')

  def apply(model, stacked, base, examples, rows, key):
    logits = _logits(model, stacked)
    loss = lambda params, own: soups.entropy(logits(params, _take(examples, own)[0])).mean()
    return soups.adamerging(
        stacked['params'], base['params'], loss, _minibatches(key, rows, steps),
        unit=_unit(by, model, stacked), initial=float(initial), lr=lr).params

  return apply


def _check(by, lr, name, count):
  if by not in UNITS:
    raise InputError(f'got by={by}; expected one of {", ".join(UNITS)}')
  if not 0 < lr < math.inf:
    raise InputError(f'got lr={lr}; expected a finite number above 0')
  if count < 1:
    raise InputError(f'got {name}={count}; expected at least 1')


def _logits(model, stacked):
  """Returns (params, x) -> logits."""
  statistics = {name: jax.tree.map(lambda x: x[0], value)
                for name, value in stacked.items() if name != 'params'}
  return lambda params, x: model.apply({'params': params, **statistics}, x, train=True)[0]


def _take(examples, own):
  return jax.tree.map(lambda leaf: leaf[own], tuple(examples))


def _pool(rows):
  """Puts the batches of all models together: [S, B]."""
  return rows.reshape(-1, rows.shape[-1])


def _minibatches(key, rows, steps):
  return search.minibatches(key, rows.ravel(), batch=rows.shape[-1], steps=steps)


def _unit(by, model, stacked):
  return UNITS[by](model, jax.tree.map(lambda x: x[0], stacked))['params']
