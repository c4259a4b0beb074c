"""Model Stock: the mean of the models, drawn towards the base where they disagree."""

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging.delta import deltas, wide
from hmm_jax.registry import Operator
from hmm_jax.types import Merge


def model_stock() -> Merge:
  """Returns Model Stock: each tensor's mean, drawn to the start the more the models disagree.

  With c the mean cosine between two task vectors of a tensor, it is

    t mean_k(theta_k) + (1 - t) theta_0,   t = K c / ((K - 1) c + 1)

  For more than two models the paper has one angle; the mean over pairs is our choice. So is
  that below 0 it counts as 0, where the start comes back, and that a single model, which has no
  pair, has c = 1 and comes back itself.

  Reference: Jang, Yun, Han. Model Stock: All we need is just a few fine-tuned models. ECCV 2024.
    arXiv:2403.19522.
  """

  def merge(stacked, base, key):
    del key

    @jax.jit
    def leaf(start, x):
      count, learned = len(x), deltas(x, start)
      cosine = jnp.maximum(_cosines(learned).mean(), 0) if count > 1 else 1.0
      t = count * cosine / ((count - 1) * cosine + 1)
      return (wide(start) + t * learned.mean(axis=0)).astype(start.dtype)

    return jax.tree.map(leaf, base, stacked)

  return merge


def _cosines(x):
  """Returns the cosine of each pair of K tensors, 0 if one of them is 0: [K (K - 1) / 2]."""
  gram = tree.gram(x)
  length = jnp.sqrt(jnp.diag(gram))
  a, b = jnp.triu_indices(len(x), 1)
  lengths = length[a] * length[b]
  return gram[a, b] / jnp.where(lengths > 0, lengths, 1)


OPERATOR = Operator(
    'model_stock', model_stock, ('base',),
    summary='the mean, nearer to the base where models disagree',
    paper='Jang, Yun, Han. ECCV 2024. arXiv:2403.19522')
