"""REPAIR: the units of a merged network vary as much again as those that it was merged from.

Averaged units vary less than each of the models', and layer after layer the signal is lost.
Where BatchNorm follows, `calibrate.recalibrate` mends that.
"""

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging.batches import mean_over_batches
from hmm_jax.types import Array, Examples, Model, PyTree

_STEADY = 1e-6  # Of the mean square: a unit that varies less is constant but for rounding.


def repair(model: Model, merged: PyTree, stacked: PyTree, examples: Examples, rows: Array, *,
           weights: Array) -> PyTree:
  """Gives hidden units the mean and deviation that the models' units have on average.

  That is for what comes out of the dense layers and convolutions, and is folded into kernel and
  bias. Each layer changes what the next one sees: all are corrected as often as there are
  layers, and after i times the first i are right. One without a bias gets the deviation alone:
  such convolutions have a normalization behind them here. The head keeps what it computes, as in
  the authors' code; a recurrent layer does, too.

  Args:
    model: the network.
    merged: variables of the merged model.
    stacked: of the models [K, ...] it was merged from, in one order of units.
    examples: flat data, without labels.
    rows: [S, B], a batch at a time.
    weights: [K], of the models in the means and deviations to reach; they sum to 1.

  Reference: Jordan, Sedghi, Saukh, Entezari, Neyshabur. REPAIR: REnormalizing Permuted
    Activations for Interpolation Repair. ICLR 2023. arXiv:2211.08403.
  """
  measure = lambda variables: _outputs(model, variables, examples, rows)
  goals = tree.mix(weights, lax.map(measure, stacked))
  layers = goals.keys() - {'head'}
  owners = model.groups(merged)

  def correct(_, variables):
    now = measure(variables)

    def leaf(where, owner, x):
      if owner not in layers:
        return x
      (mean, deviation), (goal, wanted) = now[owner], goals[owner]
      factor = jnp.where(deviation > 0, wanted / jnp.where(deviation > 0, deviation, 1), 1)
      if where[-1].key == 'bias':
        return (x - mean) * factor + goal
      return x * factor.reshape(*[1] * (x.ndim - 1), -1)

    return jax.tree.map_with_path(leaf, owners, variables)

  return lax.fori_loop(0, len(layers), correct, merged)


def _outputs(model, variables, examples, rows):
  """Returns the mean and deviation of what each linear layer puts out: {path: ([G], [G])}."""

  def moments(x):
    layers = model.linear(variables, x)
    return {path: (seen.outputs.mean(axis=0), jnp.square(seen.outputs).mean(axis=0))
            for path, seen in layers.items()}

  def deviation(mean, square):
    variance = square - mean**2
    return mean, jnp.sqrt(jnp.where(variance > _STEADY * square, variance, 0))

  return {path: deviation(*of) for path, of in mean_over_batches(moments, examples, rows).items()}
