"""Activation matching: units are the same where they answer alike on data."""

from collections.abc import Callable
import functools
import operator

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging.alignment.permutation import assign, permute
from hmm_jax.merging.batches import mean_over_batches
from hmm_jax.registry import Operator
from hmm_jax.types import Array, Examples, InputError, Model, PyTree


def match_activations(
    model: Model, a: PyTree, b: PyTree, examples: Examples, rows: Array) -> dict[str, Array]:
  """Finds where b's units go for the sum of their correlations with a's to be largest.

  What is correlated comes out of the dense layers and convolutions (our choice: after ReLU some
  units are silent). Where several of them write one group, their correlations are summed. A
  unit that does not vary correlates with none.

  Args:
    model: the network.
    a, b: variables.
    examples: flat data.
    rows: [S, B], a batch at a time.

  Returns:
    The matching, to `permute` b by.

  Raises:
    InputError: there are units of other layers.

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

  def measure(x):
    seen = model.linear(a, x), model.linear(b, x)
    return {path: _moments(*(layers[path].outputs for layers in seen))
            for path, group in written.items() if group}

  moments = mean_over_batches(measure, examples, rows)
  gains = lambda group: sum(_correlations(*moments[path]) for path in moments
                            if written[path] == group)
  return {group: assign(gains(group), runs) for group, runs in symmetry.runs.items()}


def align_by_activations(
    model: Model, stacked: PyTree, examples: Examples, rows: Array) -> PyTree:
  """Brings K models [K, ...] into the order of the first; each is matched to it."""
  first = tree.take(stacked, 0)

  def align(variables):
    matching = match_activations(model, first, variables, examples, rows)
    return permute(model.symmetry(), variables, matching)

  return lax.map(align, stacked)


def _moments(p, q):
  """Returns the means of two layers' outputs [R, n], of their squares and of all products."""
  products = jnp.matmul(p.T, q, precision='highest') / len(p)
  return p.mean(axis=0), q.mean(axis=0), (p**2).mean(axis=0), (q**2).mean(axis=0), products


def _correlations(p, q, p_square, q_square, products):
  # With an infinite deviation a unit that does not vary correlates with none.
  deviation = lambda variance: jnp.where(variance > 0, jnp.sqrt(jnp.abs(variance)), jnp.inf)
  deviations = deviation(p_square - p**2)[:, None] * deviation(q_square - q**2)[None]
  return (products - p[:, None] * q[None]) / deviations


def activation_matching() -> Callable:
  """Returns the mean of aligned models, as (model, stacked, base, examples, indices, key) -> params.

  Reference: as `match_activations`.
  """

  def apply(model, stacked, base, examples, indices, key):
    del base, key
    ordered = align_by_activations(
        model, stacked, examples, indices.reshape(-1, indices.shape[-1]))
    return tree.mean(ordered['params'])

  return apply


OPERATOR = Operator(
    'activation_matching', activation_matching, ('any init', 'network', 'data'),
    summary='the mean of models whose hidden units were matched by their activations',
    paper='Li et al. ICLR 2016. arXiv:1511.07543')
