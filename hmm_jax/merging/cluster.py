"""Clustering of models by the cosine similarity of their task vectors.

A task vector is a model minus the base that all K models share.
"""

from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, PyTree

_ROUNDING = 1e-5  # Cosines that differ by less are equal.


def similarities(deltas: PyTree) -> Array:
  """Returns the cosine of each pair of task vectors [K, ...]: [K, K].

  A task vector of 0 has cosine 0 with others, and 1 with itself.
  """
  gram = tree.gram(deltas)
  norm = jnp.sqrt(jnp.diag(gram))
  inverse = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
  cosines = (gram + gram.T) / 2 * (inverse[:, None] * inverse[None])
  return jnp.where(jnp.eye(len(gram), dtype=bool), 1, cosines)


def mean_similarity(similarity: Array) -> Array:
  """Returns the mean over all pairs of different models; 0 for a single model."""
  count = len(similarity)
  return jnp.triu(similarity, 1).sum() / max(count * (count - 1) / 2, 1)


def largest_cluster(similarity: Array, threshold: Array | float | None = None) -> Array:
  """Returns which models are in the largest cluster; all, if no pair reaches the threshold.

  Ties are broken by the mean similarity within the clusters, then by the first model.

  Args:
    similarity: [K, K], symmetric.
    threshold: least similarity of the pairs of a cluster; the mean over all pairs if None.

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


def complete_linkage(similarity: Array, threshold: Array | float) -> Array:
  """Clusters K models by complete linkage.

  The two clusters whose least similar pair is most similar are joined, until no two are left
  whose pairs all reach the threshold, up to rounding.

  Args:
    similarity: [K, K], symmetric.
    threshold: a scalar.

  Returns:
    [K] int32, the first model of each model's cluster.
  """
  count = len(similarity)
  index = jnp.arange(count, dtype=jnp.int32)

  def join(_, state):
    label, links = state  # A cluster's links are stored at its first model.
    i, j = jnp.unravel_index(jnp.argmax(links), links.shape)
    joined = jnp.minimum(links[i], links[j])
    after = links.at[i].set(joined).at[:, i].set(joined).at[j].set(-jnp.inf).at[:, j].set(-jnp.inf)
    return tree.where(links[i, j] >= threshold - _ROUNDING,
                      (jnp.where(label == j, i, label).astype(label.dtype), after), state)

  links = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, similarity)
  label, _ = lax.fori_loop(0, count - 1, join, (index, links))
  return label
