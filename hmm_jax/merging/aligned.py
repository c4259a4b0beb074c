"""Operators that bring hidden units into one order first, that of the first model.

What the factories return takes (model, stacked, base, examples, rows, key) and gives params.
Units have changed places: the models' running statistics are no longer those of the merge, even
pooled, and are to be estimated anew.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging.activations import align_by_activations
from hmm_jax.merging.matching import align_by_weights
from hmm_jax.merging.pleas import pleas as fit
from hmm_jax.types import InputError

# (model, stacked, examples, rows [S, B], key) -> stacked
ORDERS = {
    'weights': lambda model, stacked, examples, rows, key: align_by_weights(
        key, model.symmetry(), stacked),
    'activations': lambda model, stacked, examples, rows, key: align_by_activations(
        model, stacked, examples, rows),
}


def weight_matching() -> Callable:
  """Returns the mean of models whose units were matched by their weights.

  Reference: as `matching.match_weights`.
  """
  return _mean_of('weights')


def activation_matching() -> Callable:
  """Returns the mean of models whose units were matched by what they answer to rows.

  Reference: as `activations.match_activations`.
  """
  return _mean_of('activations')


def pleas(*, match: str = 'activations', ridge: float = 1e-3) -> Callable:
  """Returns PLeaS: matched models, merged by least squares on what their layers compute.

  Args:
    match: by what, one of `ORDERS`.
    ridge: towards the mean of the models.

  Raises:
    InputError: a setting that cannot be.

  Reference: as `pleas.pleas`.
  """
  if match not in ORDERS:
    raise InputError(f'got match={match}; expected one of {", ".join(ORDERS)}')
  if not 0 < ridge < math.inf:
    raise InputError(f'got ridge={ridge}; expected a finite number above 0')

  def apply(model, stacked, base, examples, rows, key):
    del base
    rows = rows.reshape(-1, rows.shape[-1])
    ordered = ORDERS[match](model, stacked, examples, rows, key)
    return fit(model, ordered, examples, rows, ridge=ridge)['params']

  return apply


def _mean_of(match):
  def apply(model, stacked, base, examples, rows, key):
    del base
    ordered = ORDERS[match](model, stacked, examples, rows.reshape(-1, rows.shape[-1]), key)
    count = len(jax.tree.leaves(stacked)[0])
    return tree.mix(jnp.full(count, 1 / count), ordered['params'])

  return apply
