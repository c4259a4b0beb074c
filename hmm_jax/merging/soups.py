"""Soups: mixtures of models that held-out data chose.

What is scored is a tree of parameters, in the dtype of the models; what they are computed in is
float32 at least. A unit is what has weights of its own, as in atlas.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.merging import atlas, search
from hmm_jax.merging.delta import deltas, wide
from hmm_jax.types import Array, PyTree


class Soup(NamedTuple):
  """A merged model and what each of K models had to do with it."""

  params: PyTree
  weights: Array  # [K, U], of each model in each unit


def greedy_soup(stacked: PyTree, score: Callable) -> Soup:
  """Adds models to a mean, the best first, for as long as its score strictly rises.

  Every model gets its turn. Of models of equal scores the first comes first (our choice).

  Args:
    stacked: leaves [K, ...].
    score: (params) -> scalar on held-out data, higher is better.

  Reference: Wortsman, Ilharco, Gadre, Roelofs, Gontijo-Lopes, Morcos, Namkoong, Farhadi, Carmon,
    Kornblith, Schmidt. Model soups: averaging weights of multiple fine-tuned models improves
    accuracy without increasing inference time. ICML 2022. arXiv:2203.05482.
  """
  stacked = jax.tree.map(jnp.asarray, stacked)
  like = tree.take(stacked, 0)
  judge = lambda params: jnp.float32(score(params))
  order = jnp.argsort(-lax.map(judge, stacked))

  def turn(carry, k):
    mean, best, members = carry
    count = members.sum()
    add = lambda m, x: m + (wide(x[k]) - m) / (count + 1)
    tried = jax.tree.map(add, mean, stacked)
    value = judge(_cast(tried, like))
    better = (value > best) | (count == 0)
    return tree.where(better, (tried, value, members.at[k].set(True)), carry), None

  empty = tree.zeros(jax.tree.map(wide, like))
  start = (empty, jnp.float32(-jnp.inf), jnp.zeros(len(order), bool))
  (mean, _, members), _ = lax.scan(turn, start, order)
  return Soup(_cast(mean, like), (members / members.sum())[:, None])


def learned_soup(stacked: PyTree, loss: Callable, batches: PyTree, *, unit: PyTree,
                 lr: float) -> Soup:
  """Learns softmax weights of the models, from equal ones, by Adam.

  That is the authors' AdamW, whose decay they set to 0. The temperature that they learn along
  with the weights is left out: it changes no prediction (our choice).

  Args:
    stacked: leaves [K, ...].
    loss: (params, batch) -> scalar.
    batches: [T, ...], one a step.
    unit: of each leaf.
    lr: of Adam.

  Reference: Wortsman et al. Model soups. ICML 2022. arXiv:2203.05482, appendix I.
  """
  count = len(jax.tree.leaves(stacked)[0])
  weights = lambda c: jax.nn.softmax(c, axis=0)
  mix = lambda c: jax.tree.map(lambda u, x: tree.mix(weights(c)[:, u], x), unit, stacked)
  c = _search(lambda c, batch: loss(mix(c), batch), jnp.zeros((count, atlas.count(unit))),
              batches, lr, lambda c: c)
  return Soup(mix(c), weights(c))


def adamerging(stacked: PyTree, base: PyTree, loss: Callable, batches: PyTree, *, unit: PyTree,
               initial: float, lr: float) -> Soup:
  """Learns theta_0 + sum_k lambda_ku delta_k, with lambda from 0 to 1, by Adam.

  After each step what has left the interval is brought back (the authors clip what they merge,
  where the gradient dies).

  Args:
    stacked: leaves [K, ...].
    base: theta_0.
    loss: (params, batch) -> scalar: mean `entropy` of predictions without labels.
    batches: [T, ...], one a step.
    unit: of each leaf.
    initial: lambda before the first step.
    lr: of Adam.

  Reference: Yang, Wang, Shen, Liu, Guo, Wang, Tao. AdaMerging: Adaptive Model Merging for
    Multi-Task Learning. ICLR 2024. arXiv:2310.02575.
  """
  start, updates = jax.tree.map(wide, base), deltas(stacked, base)
  mix = lambda c: _cast(atlas.merge(start, c, unit, updates), base)
  c = jnp.full((len(jax.tree.leaves(stacked)[0]), atlas.count(unit)), initial)
  c = _search(lambda c, batch: loss(mix(c), batch), c, batches, lr, lambda c: jnp.clip(c, 0, 1))
  return Soup(mix(c), c)


def entropy(logits: Array) -> Array:
  """Returns the entropy of each prediction: [B, C] -> [B]."""
  log_p = jax.nn.log_softmax(logits)
  return -(jnp.exp(log_p) * log_p).sum(axis=-1)


def _search(loss, start, batches, lr, project):
  """Returns where Adam ends."""
  run = search.gradient_search(optax.adam(lr)).run
  return run(loss, lambda c: jnp.float32(0), start, batches, None, project).c[-1]


def _cast(params, like):
  return jax.tree.map(lambda x, y: x.astype(y.dtype), params, like)
