"""What is measured of a stack of models and of the matrices that mix them."""

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, PyTree


def consensus(stacked: PyTree) -> Array:
  """Returns Xi^2, the agents' mean squared distance to their mean: a float32 scalar."""
  apart = jax.tree.map(lambda x: x - x.mean(0, keepdims=True), stacked)
  return tree.dot(apart, apart) / len(jax.tree.leaves(stacked)[0])


def contraction(before: PyTree, after: PyTree) -> Array:
  """Returns the share of Xi^2 that a mixing took away; 0 where models agreed before.

  They agree if only rounding sets them apart.
  """
  apart = consensus(before)
  size = tree.dot(before, before) / len(jax.tree.leaves(before)[0])
  return jnp.where(apart > 1e-12 * size, 1 - consensus(after) / jnp.maximum(apart, 1e-30), 0)


def allreduce(agents: int) -> float:
  """Returns the models that each agent sends, and receives, to average all of them."""
  return 2 * (agents - 1) / agents


@jax.jit
def messages(matrix: Array) -> tuple[Array, Array]:
  """Counts the models each agent sends and receives to mix by a matrix [K, K]: [K] each.

  A model for every entry off the diagonal; the uniform average is an AllReduce.
  """
  agents = len(matrix)
  edges = ((matrix != 0) & ~jnp.eye(agents, dtype=bool)).astype(jnp.float32)
  uniform = jnp.isclose(matrix, 1 / agents).all()
  sent, received = edges.sum(0), edges.sum(1)
  return tuple(jnp.where(uniform, allreduce(agents), count) for count in (sent, received))
