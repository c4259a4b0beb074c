"""PLeaS: matched models are merged layer by layer, by least squares on what they compute."""

import functools
import operator

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging.batches import mean_over_batches
from hmm_jax.types import Array, Examples, Model, PyTree


def pleas(
    model: Model, stacked: PyTree, examples: Examples, rows: Array, *, ridge: float = 1e-3
) -> PyTree:
  """Fits each dense layer and convolution to the mean of what the models' own put out.

  With X the mean of the models' inputs of a layer and Y that of its outputs, the layer becomes
  the W with the least |X W - Y|^2. All layers are fitted by themselves, on what the given
  models see. What has no such layer, statistics included, is averaged: estimate those anew by
  `calibrate.recalibrate`.

  This is the paper's method at the width of the models. Its budget, by which some units stay
  apart and the merged network grows, is left out: a network has one shape here. The solution is
  in closed form, which the authors approach by Adam. A ridge draws it to the mean of the models,
  for rows are few and inputs alike (our choice).

  Args:
    model: the network.
    stacked: variables [K, ...] in one order of units: see `matching` and `activations`; two in
      the paper.
    examples: flat data, without labels.
    rows: [S, B], a batch at a time. Of a convolution every place of every image is a row.
    ridge: in units of the mean square of the inputs.

  Reference: Nasery, Hayase, Koh, Oh. PLeaS: Merging Models with Permutations and Least Squares.
    CVPR 2025. arXiv:2407.02447.
  """
  count = len(jax.tree.leaves(stacked)[0])
  share = jnp.full(count, 1 / count)
  mean = tree.mix(share, stacked)
  layer = lambda path: functools.reduce(operator.getitem, path.split('/'), mean['params'])

  def normal_equations(path, inputs, outputs):
    if 'bias' in layer(path):
      inputs = jnp.append(inputs, jnp.ones((len(inputs), 1)), axis=1)
    error = outputs - jnp.matmul(inputs, _matrix(layer(path)), precision='highest')
    multiply = lambda a: jnp.matmul(inputs.T, a, precision='highest')
    return multiply(inputs), multiply(error)

  def measure(x):
    seen = tree.mix(share, lax.map(lambda variables: model.linear(variables, x), stacked))
    return {path: normal_equations(path, *seen[path]) for path in seen}

  fitted = {path: _fit(layer(path), *of, ridge)
            for path, of in mean_over_batches(measure, examples, rows).items()}

  def leaf(where, x):
    *path, name = (step.key for step in where)
    return fitted.get('/'.join(path), {name: x})[name]

  return {**mean, 'params': jax.tree.map_with_path(leaf, mean['params'])}


def _matrix(layer):
  """Returns the kernel of a layer as a matrix, and its bias, if there is one, as the last row."""
  parts = [layer[name] for name in ('kernel', 'bias') if name in layer]
  return jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])


def _fit(start, gram, error, ridge):
  """Returns a layer's kernel, and its bias if it has one, by the way to them from `start`."""
  # Inputs that are 0 throughout leave the mean as it is.
  ridge = ridge * jnp.diag(gram).mean() + jnp.finfo(gram.dtype).tiny
  damped = gram + ridge * jnp.eye(len(gram))
  weights = _matrix(start) + jax.scipy.linalg.solve(damped, error, assume_a='pos')
  size = start['kernel'].size // weights.shape[1]
  return {'kernel': weights[:size].reshape(start['kernel'].shape), 'bias': weights[-1]}
