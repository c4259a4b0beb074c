"""Pooling of several models' normalization statistics; clipping of negative variances."""

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, PyTree


def pool(weights: Array, stacked: PyTree) -> PyTree:
  """Pools K models' statistics as if their data were one data set.

  mean = sum_k w_k mean_k,  var = sum_k w_k (var_k + (mean_k - mean)^2): the plain mean of
  the variances would drop the spread between the models. If all models share a layer and w_k
  are their shares of the examples, these are the statistics of all examples together.

  Args:
    weights: [K], sum to 1.
    stacked: trees with a 'mean' and a 'var' [K, F] at each normalization; variances are the
      biased ones, as flax keeps them.
  """
  if 'var' not in stacked:
    return {name: pool(weights, inner) for name, inner in stacked.items()}
  mean = tree.mix(weights, stacked['mean'])
  spread = jnp.square(stacked['mean'] - mean[None])
  return {'mean': mean, 'var': tree.mix(weights, stacked['var'] + spread)}


def nonnegative_variances(variables: PyTree) -> PyTree:
  """Clips negative running variances to 0; everything else stays.

  Signed sums of models, and sums of updates, can make a variance negative, which gives NaN.
  """
  def leaf(path, x):
    return jnp.maximum(x, 0) if path[0].key != 'params' and path[-1].key == 'var' else x

  return jax.tree.map_with_path(leaf, variables)
