"""Weight matching: hidden units of models are permuted until their weights agree best.

In independently trained networks, units in the same position are unrelated. Once they are
matched, models can be merged by any operator, such as `tree.mix`.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.merging.alignment.permutation import (
    assign,
    copies,
    identity,
    permute,
    permute_leaf,
    together,
)
from hmm_jax.registry import Operator
from hmm_jax.types import Array, Key, PyTree, Symmetry

_ROUNDING = 1e-6  # A step must gain more than this share of |a| |b|.


def match_weights(key: Key, symmetry: Symmetry, a: PyTree, b: PyTree) -> dict[str, Array]:
  """Returns the permutation of b's units with the largest inner product of parameters with a's.

  Coordinate ascent: a step solves the assignment of one group, or of several that are tied, given
  the others, and is kept if it gains; sweeps are repeated until no step gains. They are in random
  order, except that the first one starts at the inputs and ignores groups that are not matched
  yet (our choice: in narrow networks random orders end in local optima). Normalization statistics
  are not compared.

  Args:
    key: of the random orders.
    symmetry: of the network.
    a, b: variables.

  Returns:
    The matching, by which to `permute` b.

  Reference: Ainsworth, Hayase, Srinivasa. Git Re-Basin: Merging Models modulo Permutation
    Symmetries. ICLR 2023. arXiv:2209.04836.
  """
  steps = [_step(groups, symmetry, a, b) for groups in together(symmetry)]
  start = identity(symmetry)
  if not steps:
    return start
  agreement = lambda matching: tree.dot(a['params'], permute(symmetry, b, matching)['params'])
  norms = [jnp.sqrt(tree.dot(model['params'], model['params'])) for model in (a, b)]
  least = _ROUNDING * norms[0] * norms[1]

  def visit(carry, i):
    matching, value, matched = carry
    new = lax.switch(i, steps, matching, matched)
    reached = agreement(new)
    better = reached > value + least
    matching, value = tree.where(better, (new, reached), (matching, value))
    return (matching, value, matched.at[i].set(True)), better

  def sweep(state):
    carry, _, key = state
    key, order_key = jax.random.split(key)
    is_first = ~carry[2].all()
    order = jnp.where(is_first, jnp.arange(len(steps)),
                      jax.random.permutation(order_key, len(steps)))
    carry, better = lax.scan(visit, carry, order)
    return carry, is_first | better.any(), key

  carry = start, agreement(start), jnp.zeros(len(steps), bool)
  carry, _, _ = lax.while_loop(lambda state: state[1], sweep, (carry, jnp.bool_(True), key))
  return carry[0]


def _step(own, symmetry, a, b):
  """Returns (matching, matched [steps]) -> matching, optimal for groups assigned together."""
  step_of = {group: i for i, groups in enumerate(together(symmetry)) for group in groups}
  structure = jax.tree.structure(a['params'])
  leaves = [*zip(jax.tree.leaves(a['params']), jax.tree.leaves(b['params']),
                 structure.flatten_up_to(symmetry.axes['params']), strict=True)]

  def gains(group, matching, matched):
    count = symmetry.size[group]
    by_unit = lambda x, axis: jnp.moveaxis(copies(x, axis, count), axis + 1, 0).reshape(count, -1)
    total = jnp.zeros((count, count))
    for x, y, groups in leaves:
      for axis in (i for i, other in enumerate(groups) if other == group):
        others = (*groups[:axis], None, *groups[axis + 1:])
        known = matched[np.array([step_of[other] for other in others if other], int)].all()
        moved = permute_leaf(y, others, matching)
        total += known * jnp.matmul(by_unit(x, axis), by_unit(moved, axis).T, precision='highest')
    return total

  def step(matching, matched):
    found = assign([gains(group, matching, matched) for group in own], symmetry.runs[own[0]])
    return {**matching, **dict(zip(own, found, strict=True))}

  return step


def align_by_weights(key: Key, symmetry: Symmetry, stacked: PyTree) -> PyTree:
  """Permutes the units of K models to match those of the first.

  MergeMany: each model in turn is matched to the mean of the others, until none changes. In the
  first pass that is the mean of those before it (our choice: the mean of unmatched models is
  uninformative). Our choice, too: the first model stays, and the order is fixed.

  Args:
    key: of the random orders of groups.
    symmetry: of the network.
    stacked: variables [K, ...].

  Reference: as `match_weights`.
  """
  index = jnp.arange(tree.count(stacked))
  stay = identity(symmetry)

  def turns(state):
    stacked, _, first, key = state
    key, turns_key = jax.random.split(key)
    keys = jax.random.split(turns_key, len(index) - 1)

    def turn(stacked, now):
      i, key = now
      others = jnp.where(first, index < i, index != i)
      model = tree.take(stacked, i)
      matching = match_weights(key, symmetry, tree.mix(others / others.sum(), stacked), model)
      moved = jnp.array([(matching[group] != stay[group]).any() for group in stay], bool).any()
      return tree.put(stacked, i, permute(symmetry, model, matching)), moved

    stacked, moved = lax.scan(turn, stacked, (index[1:], keys))
    return stacked, moved.any(), jnp.bool_(False), key

  start = stacked, jnp.bool_(len(index) > 1), jnp.bool_(True), key
  return lax.while_loop(lambda state: state[1], turns, start)[0]


def weight_matching() -> Callable:
  """Returns the mean of models after weight matching.

  Reference: as `match_weights`.
  """

  def apply(model, stacked, base, examples, indices, key):
    del base, examples, indices
    aligned = align_by_weights(key, model.symmetry(), stacked)
    return tree.mean(aligned['params'])

  return apply


OPERATOR = Operator(
    'weight_matching', weight_matching, ('any init', 'network'),
    summary='the mean of models whose hidden units were matched by their weights',
    paper='Ainsworth, Hayase, Srinivasa. ICLR 2023. arXiv:2209.04836')
