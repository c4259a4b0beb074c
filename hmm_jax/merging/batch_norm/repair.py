"""REPAIR: activations of a merged network are rescaled to the variance of the merged models'.

Averaged units vary less than those of each model, and the signal shrinks layer by layer. With
BatchNorm, `recalibrate.recalibrate` corrects that.
"""

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging.batches import mean_over_batches, row_weights
from hmm_jax.types import Array, Examples, Model, PyTree

_STEADY = 1e-6  # Times the mean square: a unit of less variance is constant up to rounding.


def repair(model: Model, merged: PyTree, stacked: PyTree, examples: Examples, rows: Array, *,
           weights: Array) -> PyTree:
  """Rescales hidden units to the mean and deviation that the models' units have on average.

  This applies to the outputs of dense layers and convolutions, and is folded into kernel and
  bias. A correction changes the inputs of the next layer: all layers are corrected as many times
  as there are layers; after i times the first i are exact. Without a bias only the deviation is
  corrected: such convolutions are followed by a normalization here. The head is not corrected,
  as in the authors' code, nor are recurrent layers.

  Args:
    model: the network.
    merged: variables of the merged model.
    stacked: variables [K, ...] of the models that were merged, with matched units.
    examples: flat data, without labels.
    rows: [S, B], indices of each batch.
    weights: [K], of the models in the target means and deviations; they sum to 1.

  Reference: Jordan, Sedghi, Saukh, Entezari, Neyshabur. REPAIR: REnormalizing Permuted
    Activations for Interpolation Repair. ICLR 2023. arXiv:2211.08403.
  """
  measure = lambda variables: _outputs(model, variables, examples, rows)
  targets = tree.mix(weights, lax.map(measure, stacked))
  layers = targets.keys() - {'head'}
  owners = model.groups(merged)

  def correct(_, variables):
    now = measure(variables)

    def leaf(where, owner, x):
      if owner not in layers:
        return x
      (mean, deviation), (to_mean, to_deviation) = now[owner], targets[owner]
      factor = jnp.where(deviation > 0, to_deviation / jnp.where(deviation > 0, deviation, 1), 1)
      if where[-1].key == 'bias':
        return (x - mean) * factor + to_mean
      return x * factor.reshape(*[1] * (x.ndim - 1), -1)

    return jax.tree.map_with_path(leaf, owners, variables)

  return lax.fori_loop(0, len(layers), correct, merged)


def _outputs(model, variables, examples, rows):
  """Returns the mean and deviation of each linear layer's outputs: {path: ([G], [G])}."""

  def mean_and_square(x, weights):
    return (weights * x).sum(axis=0), (weights * jnp.square(x)).sum(axis=0)

  def moments(batch):
    layers = model.linear(variables, batch.x)
    return {path: mean_and_square(seen.outputs, row_weights(batch.mask, len(seen.outputs)))
            for path, seen in layers.items()}

  def deviation(mean, square):
    variance = square - mean**2
    return mean, jnp.sqrt(jnp.where(variance > _STEADY * square, variance, 0))

  return {path: deviation(*of) for path, of in mean_over_batches(moments, examples, rows).items()}
