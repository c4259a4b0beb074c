"""Weight matching: models whose hidden units stand in other orders are brought into one.

In networks that were trained apart, units of the same place have nothing to do with each other.
Once they are matched, models are merged by any operator, such as `tree.mix`.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.merging.alignment.permutation import assign, copies, identity, permute, permute_leaf
from hmm_jax.registry import Operator
from hmm_jax.types import Array, Key, PyTree, Symmetry

_ROUNDING = 1e-6  # A gain must be more than this share of what two models could agree.


def match_weights(key: Key, symmetry: Symmetry, a: PyTree, b: PyTree) -> dict[str, Array]:
  """Finds where b's units go to agree with a: the inner product of all parameters is largest.

  Coordinate ascent: a step solves the assignment of one group, given the others, and counts if
  it gains; sweeps go on until no step does. They are in random order, except that the first one
  goes from the inputs on and looks at nothing that is not matched yet (our choice: in narrow
  networks random orders end where wrong matches hold each other). Statistics of normalizations
  are not compared.

  Args:
    key: of the orders.
    symmetry: of the network.
    a, b: variables.

  Returns:
    The matching, to `permute` b by.

  Reference: Ainsworth, Hayase, Srinivasa. Git Re-Basin: Merging Models modulo Permutation
    Symmetries. ICLR 2023. arXiv:2209.04836.
  """
  groups, start = list(symmetry.size), identity(symmetry)
  if not groups:
    return start
  agreement = lambda matching: tree.dot(a['params'], permute(symmetry, b, matching)['params'])
  lengths = [jnp.sqrt(tree.dot(model['params'], model['params'])) for model in (a, b)]
  least = _ROUNDING * lengths[0] * lengths[1]
  steps = [_step(group, symmetry, a, b) for group in groups]

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
    order = jnp.where(is_first, jnp.arange(len(groups)),
                      jax.random.permutation(order_key, len(groups)))
    carry, better = lax.scan(visit, carry, order)
    return carry, is_first | better.any(), key

  carry = start, agreement(start), jnp.zeros(len(groups), bool)
  carry, _, _ = lax.while_loop(lambda state: state[1], sweep, (carry, jnp.bool_(True), key))
  return carry[0]


def _step(group, symmetry, a, b):
  """Returns (matching, matched [groups]) -> matching, with the best of one group."""
  order, count = list(symmetry.size), symmetry.size[group]
  structure = jax.tree.structure(a['params'])
  leaves = [*zip(jax.tree.leaves(a['params']), jax.tree.leaves(b['params']),
                 structure.flatten_up_to(symmetry.axes['params']), strict=True)]

  def by_unit(x, axis):
    return jnp.moveaxis(copies(x, axis, count), axis + 1, 0).reshape(count, -1)

  def step(matching, matched):
    gains = jnp.zeros((count, count))
    for x, y, groups in leaves:
      for axis in (i for i, other in enumerate(groups) if other == group):
        others = (*groups[:axis], None, *groups[axis + 1:])
        known = matched[np.array([order.index(other) for other in others if other], int)].all()
        moved = permute_leaf(y, others, matching)
        gains += known * jnp.matmul(by_unit(x, axis), by_unit(moved, axis).T, precision='highest')
    return {**matching, group: assign(gains, symmetry.runs[group])}

  return step


def align_by_weights(key: Key, symmetry: Symmetry, stacked: PyTree) -> PyTree:
  """Brings K models into the order of the first, which stays.

  MergeMany: one after another is matched to the mean of the others, until none moves. In the
  first turns that is the mean of those before it (our choice: models in different orders have a
  mean that says little). That the first one stays, and the order of turns, are ours, too.

  Args:
    key: of the orders of groups.
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
  """Returns the mean of aligned models, as (model, stacked, base, examples, indices, key) -> params.

  Reference: as `match_weights`.
  """

  def apply(model, stacked, base, examples, indices, key):
    del base, examples, indices
    ordered = align_by_weights(key, model.symmetry(), stacked)
    return tree.mean(ordered['params'])

  return apply


OPERATOR = Operator(
    'weight_matching', weight_matching, ('any init', 'network'),
    summary='the mean of models whose hidden units were matched by their weights',
    paper='Ainsworth, Hayase, Srinivasa. ICLR 2023. arXiv:2209.04836')
