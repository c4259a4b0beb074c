"""Models that have learned alike: clusters by the angles between their task vectors.

A task vector is a model less the start that all K models share.
"""

from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, PyTree

_ROUNDING = 1e-5  # Cosines that differ by less are equal.


def similarities(deltas: PyTree) -> Array:
  """Returns the cosine of each pair of task vectors [K, ...]: [K, K].

  One that is 0 has no direction: its cosine is 0, and 1 with itself.
  """
  gram = tree.gram(deltas)
  length = jnp.sqrt(jnp.diag(gram))
  unit = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
  cosines = (gram + gram.T) / 2 * (unit[:, None] * unit[None])
  return jnp.where(jnp.eye(len(gram), dtype=bool), 1, cosines)


def mean_similarity(similarity: Array) -> Array:
  """Returns the mean over all pairs of different models; 0 where there is none."""
  count = len(similarity)
  return jnp.triu(similarity, 1).sum() / max(count * (count - 1) / 2, 1)


def largest_cluster(similarity: Array, threshold: Array | None = None) -> Array:
  """Says which models are in the largest cluster; all are where no pair reaches the threshold.

  Of equally large ones it is that whose pairs are more alike on average, then that with the
  first model.

  Args:
    similarity: [K, K], symmetric.
    threshold: what all pairs of a cluster reach; their mean over all pairs if None.

  Returns:
    [K] bool.
  """
  if threshold is None:
    threshold = mean_similarity(similarity)
  label = complete_linkage(similarity, threshold)
  same = (label[:, None] == label[None]).astype(similarity.dtype)  # Row k: the cluster of model k.
  size = same.sum(axis=1)
  alike = jnp.einsum('ki,ij,kj->k', same, similarity, same, precision='highest') / size**2
  alike = jnp.where(size == size.max(), alike, -jnp.inf)
  chosen = jnp.argmax(alike >= alike.max() - _ROUNDING)
  return (same[chosen] > 0) | (size.max() == 1)


def complete_linkage(similarity: Array, threshold: Array) -> Array:
  """Clusters K models: the two clusters whose least similar pair is most similar are joined.

  That goes on until no two are left whose pairs all reach the threshold, but for rounding.

  Args:
    similarity: [K, K], symmetric.
    threshold: a scalar.

  Returns:
    [K] int32, the first model of each one's cluster.
  """
  count = len(similarity)
  index = jnp.arange(count, dtype=jnp.int32)

  def join(_, state):
    label, links = state  # A cluster's links stand at its first model.
    i, j = jnp.unravel_index(jnp.argmax(links), links.shape)
    joined = jnp.minimum(links[i], links[j])
    after = links.at[i].set(joined).at[:, i].set(joined).at[j].set(-jnp.inf).at[:, j].set(-jnp.inf)
    return tree.where(links[i, j] >= threshold - _ROUNDING,
                      (jnp.where(label == j, i, label).astype(label.dtype), after), state)

  links = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, similarity)
  label, _ = lax.fori_loop(0, count - 1, join, (index, links))
  return label
