"""What is measured of a stack of models and of the matrices that mix them."""

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, PyTree


def consensus(stacked: PyTree) -> Array:
  """Returns Xi^2, the agents' mean squared distance to their mean: a float32 scalar."""
  # Inner products are one fast pass; from a model of their own, they don't cancel.
  apart = tree.gram(jax.tree.map(lambda x: x - x[:1], stacked))
  return jnp.maximum(jnp.trace(apart) / len(apart) - apart.mean(), 0)


def contraction(before: PyTree, after: PyTree) -> Array:
  """Returns the share of Xi^2 that a mixing took away; 0 where models agreed before."""
  apart = consensus(before)
  return jnp.where(apart > 0, 1 - consensus(after) / jnp.where(apart > 0, apart, 1), 0)


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
