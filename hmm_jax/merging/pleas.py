"""PLeaS: matched models are merged layer by layer, by least squares on their activations."""

from collections.abc import Callable
import functools
import math
import operator

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging.alignment.activation_matching import align_by_activations
from hmm_jax.merging.alignment.weight_matching import align_by_weights
from hmm_jax.merging.batches import mean_over_batches, row_weights
from hmm_jax.registry import Operator, Setting
from hmm_jax.types import Array, Examples, InputError, Model, PyTree


def fit_layers(
    model: Model, stacked: PyTree, examples: Examples, rows: Array, *, ridge: float = 1e-3
) -> PyTree:
  """Fits each dense layer and convolution to the mean outputs of the models' layers.

  With X the mean of the models' inputs of a layer and Y that of its outputs, the layer becomes
  the W with the least |X W - Y|^2. Layers are fitted independently, on the activations of the
  given models. Other leaves, statistics included, are averaged: recalibrate statistics by
  `recalibrate.recalibrate`.

  This is the paper's method at the width of the models. Its budget, by which some units stay
  unmerged and the merged network grows, is left out: a network has one shape here. The solution
  is in closed form, which the authors approximate by Adam. A ridge pulls it to the mean of the
  models, as examples are few and inputs correlated (our choice).

  Args:
    model: the network.
    stacked: variables [K, ...] with matched units, see hmm_jax/merging/alignment; two in the
      paper.
    examples: flat data, without labels.
    rows: [S, B], indices of each batch. In a convolution X has a row per position and image.
    ridge: in units of the mean square of the inputs.

  Reference: Nasery, Hayase, Koh, Oh. PLeaS: Merging Models with Permutations and Least Squares.
    CVPR 2025. arXiv:2407.02447.
  """
  count = tree.count(stacked)
  share = jnp.full(count, 1 / count)
  mean = tree.mix(share, stacked)
  layer = lambda path: functools.reduce(operator.getitem, path.split('/'), mean['params'])

  def normal_equations(path, mask, inputs, outputs):
    if 'bias' in layer(path):
      inputs = jnp.append(inputs, jnp.ones((len(inputs), 1)), axis=1)
    error = outputs - jnp.matmul(inputs, _matrix(layer(path)), precision='highest')
    weights = row_weights(mask, len(inputs))
    multiply = lambda a: jnp.matmul(inputs.T, weights * a, precision='highest')
    return multiply(inputs), multiply(error)

  def measure(batch):
    seen = tree.mix(share, lax.map(lambda variables: model.linear(variables, batch.x), stacked))
    return {path: normal_equations(path, batch.mask, *seen[path]) for path in seen}

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
  """Returns a layer's kernel and, if it has one, bias, solved as a correction of `start`."""
  # With inputs of 0 throughout, the mean stays.
  ridge = ridge * jnp.diag(gram).mean() + jnp.finfo(gram.dtype).tiny
  damped = gram + ridge * jnp.eye(len(gram))
  weights = _matrix(start) + jax.scipy.linalg.solve(damped, error, assume_a='pos')
  size = start['kernel'].size // weights.shape[1]
  return {'kernel': weights[:size].reshape(start['kernel'].shape), 'bias': weights[-1]}


# (model, stacked, examples, indices [S, B], key) -> stacked
MATCHES = {
    'weights': lambda model, stacked, examples, indices, key: align_by_weights(
        key, model.symmetry(), stacked),
    'activations': lambda model, stacked, examples, indices, key: align_by_activations(
        model, stacked, examples, indices),
}


def pleas(*, match: str = 'activations', ridge: float = 1e-3) -> Callable:
  """Returns PLeaS: matched models, merged by least squares on their activations.

  Args:
    match: how hidden units are matched, one of `MATCHES`.
    ridge: towards the mean of the models.

  Raises:
    InputError: a setting is out of range.

  Reference: as `fit_layers`.
  """
  if match not in MATCHES:
    raise InputError(f'got match={match}; expected one of {", ".join(MATCHES)}')
  if not 0 < ridge < math.inf:
    raise InputError(f'got ridge={ridge}; expected a finite number above 0')

  def apply(model, stacked, base, examples, indices, key):
    del base
    indices = indices.reshape(-1, indices.shape[-1])
    aligned = MATCHES[match](model, stacked, examples, indices, key)
    return fit_layers(model, aligned, examples, indices, ridge=ridge)['params']

  return apply


OPERATOR = Operator(
    'pleas', pleas, ('any init', 'network', 'data'),
    {'match': Setting('activations', 'what hidden units are matched by', choices=MATCHES),
     'ridge': Setting(1e-3, 'ridge regularization towards the mean of the models', above=0)},
    summary='matched models, merged by least squares on their activations',
    paper='Nasery et al. CVPR 2025. arXiv:2407.02447')
