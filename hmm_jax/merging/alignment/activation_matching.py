"""Activation matching: hidden units are matched by the correlation of their activations."""

from collections.abc import Callable
import functools
import operator

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging.alignment.permutation import assign, permute, together
from hmm_jax.merging.batches import mean_over_batches, row_weights
from hmm_jax.registry import Operator
from hmm_jax.types import Array, Examples, InputError, Model, PyTree


def match_activations(
    model: Model, a: PyTree, b: PyTree, examples: Examples, rows: Array) -> dict[str, Array]:
  """Returns the permutation of b's units with the largest sum of correlations with a's.

  Correlated are the outputs of dense layers and convolutions, before ReLU (our choice: after it
  some units are constant). If several layers write one group, their correlations are summed. A
  constant unit has correlation 0.

  Args:
    model: the network.
    a, b: variables.
    examples: flat data.
    rows: [S, B], indices of each batch.

  Returns:
    The matching, by which to `permute` b.

  Raises:
    InputError: there are hidden units of other layers.

  Reference: Li, Yosinski, Clune, Lipson, Hopcroft. Convergent Learning: Do different neural
    networks learn the same representations? ICLR 2016. arXiv:1511.07543.
  """
  symmetry = model.symmetry()
  paths = jax.eval_shape(model.linear, a, examples.x)
  axes = lambda path: functools.reduce(operator.getitem, path.split('/'), symmetry.axes['params'])
  written = {path: axes(path)['kernel'][-1] for path in paths}
  missing = sorted(symmetry.size.keys() - written.values())
  if missing:
    raise InputError(f'got units of {", ".join(missing)}, whose activations are not recorded; '
                     'expected dense layers and convolutions only: match weights instead')

  def measure(batch):
    seen = model.linear(a, batch.x), model.linear(b, batch.x)
    return {path: _moments(batch.mask, *(layers[path].outputs for layers in seen))
            for path, group in written.items() if group}

  moments = mean_over_batches(measure, examples, rows)
  gains = lambda group: sum(_correlations(*moments[path]) for path in moments
                            if written[path] == group)
  matching = {}
  for groups in together(symmetry):
    found = assign([gains(group) for group in groups], symmetry.runs[groups[0]])
    matching |= dict(zip(groups, found, strict=True))
  return matching


def align_by_activations(
    model: Model, stacked: PyTree, examples: Examples, rows: Array) -> PyTree:
  """Permutes the units of K models [K, ...] to match each to the first."""
  first = tree.take(stacked, 0)

  def align(variables):
    matching = match_activations(model, first, variables, examples, rows)
    return permute(model.symmetry(), variables, matching)

  return lax.map(align, stacked)


def _moments(mask, p, q):
  """Returns the means of outputs p and q [R, n], of their squares and of all products."""
  weights = row_weights(mask, len(p))
  mean = lambda x: (weights * x).sum(axis=0)
  products = jnp.matmul(p.T, weights * q, precision='highest')
  return mean(p), mean(q), mean(p**2), mean(q**2), products


def _correlations(p, q, p_square, q_square, products):
  # An infinite deviation gives a constant unit correlation 0.
  deviation = lambda variance: jnp.where(variance > 0, jnp.sqrt(jnp.abs(variance)), jnp.inf)
  deviations = deviation(p_square - p**2)[:, None] * deviation(q_square - q**2)[None]
  return (products - p[:, None] * q[None]) / deviations


def activation_matching() -> Callable:
  """Returns the mean of models after activation matching.

  Reference: as `match_activations`.
  """

  def apply(model, stacked, base, examples, indices, key):
    del base, key
    aligned = align_by_activations(
        model, stacked, examples, indices.reshape(-1, indices.shape[-1]))
    return tree.mean(aligned['params'])

  return apply


OPERATOR = Operator(
    'activation_matching', activation_matching, ('any init', 'network', 'data'),
    summary='the mean of models whose hidden units were matched by their activations',
    paper='Li et al. ICLR 2016. arXiv:1511.07543')
