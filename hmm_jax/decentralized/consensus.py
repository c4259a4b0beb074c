"""Consensus distance of stacked models, and message counts of mixing matrices."""

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, PyTree


def consensus(stacked: PyTree) -> Array:
  """Returns Xi^2, the agents' mean squared distance to their mean: a float32 scalar."""
  # Inner products take one fast pass; relative to one of the models, they don't cancel.
  gram = tree.gram(jax.tree.map(lambda x: x - x[:1], stacked))
  return jnp.maximum(jnp.trace(gram) / len(gram) - gram.mean(), 0)


def contraction(before: PyTree, after: PyTree) -> Array:
  """Returns the share of Xi^2 that a mixing removed; 0 if models agreed before."""
  distance = consensus(before)
  return jnp.where(
      distance > 0, 1 - consensus(after) / jnp.where(distance > 0, distance, 1), 0)


def allreduce(agents: int) -> float:
  """Returns how many models each agent sends, and receives, in an AllReduce."""
  return 2 * (agents - 1) / agents


@jax.jit
def messages(matrix: Array) -> tuple[Array, Array]:
  """Counts the models each agent sends and receives to mix by a matrix [K, K]: [K] each.

  One model per nonzero entry off the diagonal; the uniform average is an AllReduce.
  """
  agents = len(matrix)
  edges = ((matrix != 0) & ~jnp.eye(agents, dtype=bool)).astype(jnp.float32)
  uniform = jnp.isclose(matrix, 1 / agents).all()
  counted = lambda count: jnp.where(uniform, allreduce(agents), count)
  return counted(edges.sum(0)), counted(edges.sum(1))
