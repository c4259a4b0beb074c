"""Arithmetic on parameter pytrees and on stacks of them (leading axis K)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hmm_jax.types import Array, PyTree


def mix(matrix: Array, stacked: PyTree) -> PyTree:
  """Mixes K models into M linear combinations.

  Args:
    matrix: [M, K], any real numbers; or [K] for one mixed model without the
      leading axis.
    stacked: leaves [K, ...].

  Returns:
    Leaves [M, ...] (or [...] for a matrix [K]), computed in float32 at least, whatever
    the accelerator's default matmul precision, and cast back to each leaf's dtype.
  """

  def leaf(x):
    # Flat, because the transpose of a product over several axes is slow on a CPU.
    flat = x.reshape(len(x), -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    mixed = jnp.matmul(matrix, flat, precision='highest').astype(x.dtype)
    return mixed.reshape(*mixed.shape[:-1], *x.shape[1:])

  return jax.tree.map(leaf, stacked)


def stack(trees: Sequence[PyTree]) -> PyTree:
  """Stacks equally shaped trees along a new leading axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def count(stacked: PyTree) -> int:
  """Returns the number of members of a stack, K."""
  return len(jax.tree.leaves(stacked)[0])


def mean(stacked: PyTree) -> PyTree:
  """Averages the members of a stack with equal weights, in the precision of `mix`."""
  members = count(stacked)
  return mix(jnp.full(members, 1 / members), stacked)


def statistics(variables: PyTree) -> PyTree:
  """Returns `variables` less 'params': the BatchNorm statistics, {} if there are none."""
  return {name: value for name, value in variables.items() if name != 'params'}


def unstack(stacked: PyTree) -> list[PyTree]:
  """Splits a stack into the list of its K trees."""
  return [take(stacked, k) for k in range(count(stacked))]


def repeat(tree: PyTree, times: int) -> PyTree:
  """Returns a stack of `times` copies of a tree."""
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (times, *jnp.shape(x))), tree)


def take(stacked: PyTree, index: Array | int) -> PyTree:
  """Selects members of a stack: an integer gives one tree, [m] a stack of m."""
  return jax.tree.map(lambda x: x[index], stacked)


def put(stacked: PyTree, index: Array, members: PyTree) -> PyTree:
  """Returns the stack with the members at `index` ([m]) replaced."""
  return jax.tree.map(lambda x, new: x.at[index].set(new), stacked, members)


def split(mask: PyTree, tree: PyTree) -> tuple[PyTree, PyTree]:
  """Splits a tree by a tree of bools: (where True, where False), with None for the rest."""
  chosen = jax.tree.map(lambda keep, x: x if keep else None, mask, tree)
  rest = jax.tree.map(lambda keep, x: None if keep else x, mask, tree)
  return chosen, rest


def join(chosen: PyTree, rest: PyTree) -> PyTree:
  """Joins the two parts of `split`."""
  return jax.tree.map(lambda x, y: y if x is None else x, chosen, rest,
                      is_leaf=lambda x: x is None)


def add(a: PyTree, b: PyTree) -> PyTree:
  return jax.tree.map(jnp.add, a, b)


def sub(a: PyTree, b: PyTree) -> PyTree:
  return jax.tree.map(jnp.subtract, a, b)


def scale(factor: Array | float, tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: factor * x, tree)


def zeros(tree: PyTree) -> PyTree:
  return jax.tree.map(jnp.zeros_like, tree)


def dot(a: PyTree, b: PyTree) -> Array:
  """Returns the inner product over all leaves, a float32 scalar."""
  products = jax.tree.map(
      lambda x, y: jnp.vdot(x, y, precision='highest', preferred_element_type=jnp.float32), a, b)
  return sum(jax.tree.leaves(products), jnp.float32(0))


def gram(stacked: PyTree) -> Array:
  """Returns the inner products between the members of a stack: [K, K]."""

  def leaf(x):
    flat = x.reshape(x.shape[0], -1)
    return jnp.matmul(flat, flat.T, precision='highest', preferred_element_type=jnp.float32)

  return sum(jax.tree.leaves(jax.tree.map(leaf, stacked)))


def where(condition: Array, a: PyTree, b: PyTree) -> PyTree:
  """Selects a whole tree by a scalar condition."""
  return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def all_finite(tree: PyTree) -> Array:
  """Returns whether all entries of all leaves are finite: a bool scalar."""
  finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)
            if jnp.issubdtype(x.dtype, jnp.inexact)]
  return jnp.stack(finite).all() if finite else jnp.bool_(True)


def size(tree: PyTree) -> int:
  """Returns the number of scalars in a tree."""
  return sum(x.size for x in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
  """Returns the bytes of a tree of arrays or of jax.ShapeDtypeStructs."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
