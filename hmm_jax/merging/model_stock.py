"""Model Stock: the mean of the models, interpolated towards the base where they disagree."""

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging.delta import deltas, wide
from hmm_jax.registry import Operator
from hmm_jax.types import Merge


def model_stock() -> Merge:
  """Returns Model Stock: each tensor's mean, nearer to the base the more the models disagree.

  With c the mean cosine between two task vectors of a tensor, it is

    t mean_k(theta_k) + (1 - t) theta_0,   t = K c / ((K - 1) c + 1)

  For more than two models the paper has one angle. Our choices: the mean over pairs; a negative
  mean counts as 0, which gives the base; a single model, which has no pair, has c = 1, which gives
  the model itself.

  Reference: Jang, Yun, Han. Model Stock: All we need is just a few fine-tuned models. ECCV 2024.
    arXiv:2403.19522.
  """

  def merge(stacked, base, key):
    del key

    @jax.jit
    def leaf(origin, x):
      count, learned = len(x), deltas(x, origin)
      cosine = jnp.maximum(_cosines(learned).mean(), 0) if count > 1 else 1.0
      t = count * cosine / ((count - 1) * cosine + 1)
      return (wide(origin) + t * learned.mean(axis=0)).astype(origin.dtype)

    return jax.tree.map(leaf, base, stacked)

  return merge


def _cosines(x):
  """Returns the cosine of each pair of K tensors, 0 if either is 0: [K (K - 1) / 2]."""
  gram = tree.gram(x)
  norm = jnp.sqrt(jnp.diag(gram))
  a, b = jnp.triu_indices(len(x), 1)
  norms = norm[a] * norm[b]
  return gram[a, b] / jnp.where(norms > 0, norms, 1)


OPERATOR = Operator(
    'model_stock', model_stock, ('base',),
    summary='the mean, nearer to the base where models disagree',
    paper='Jang, Yun, Han. ECCV 2024. arXiv:2403.19522')
