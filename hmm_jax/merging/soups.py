"""Model soups: means of models, chosen on held-out data.

Parameters are evaluated in the dtype of the models, and averaged in at least float32. A unit is a
set of leaves that share weights, as in atlas.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging import atlas
from hmm_jax.merging.batches import masked_mean, take
from hmm_jax.merging.delta import wide
from hmm_jax.merging.learning import (
    BY,
    LR,
    adam,
    cast,
    check,
    logits_of,
    minibatches,
    pooled,
    unit_of,
)
from hmm_jax.registry import Operator, Setting
from hmm_jax.types import Array, PyTree


class Soup(NamedTuple):
  """A merged model and the weight of each of K models in it."""

  params: PyTree
  weights: Array  # [K, U], of each model in each unit


def greedy(stacked: PyTree, score: Callable) -> Soup:
  """Adds models to a mean, best first, keeping each that strictly raises the score of the mean.

  Every model is tried once. Models of equal scores are tried in their order (our choice).

  Args:
    stacked: leaves [K, ...].
    score: (params) -> scalar on held-out data, higher is better.

  Reference: Wortsman, Ilharco, Gadre, Roelofs, Gontijo-Lopes, Morcos, Namkoong, Farhadi, Carmon,
    Kornblith, Schmidt. Model soups: averaging weights of multiple fine-tuned models improves
    accuracy without increasing inference time. ICML 2022. arXiv:2203.05482.
  """
  stacked = jax.tree.map(jnp.asarray, stacked)
  like = tree.take(stacked, 0)
  evaluate = lambda params: jnp.float32(score(params))
  order = jnp.argsort(-lax.map(evaluate, stacked))

  def turn(carry, k):
    mean, best, members = carry
    count = members.sum()
    add = lambda m, x: m + (wide(x[k]) - m) / (count + 1)
    tried = jax.tree.map(add, mean, stacked)
    value = evaluate(cast(tried, like))
    better = (value > best) | (count == 0)
    return tree.where(better, (tried, value, members.at[k].set(True)), carry), None

  empty = tree.zeros(jax.tree.map(wide, like))
  start = (empty, jnp.float32(-jnp.inf), jnp.zeros(len(order), bool))
  (mean, _, members), _ = lax.scan(turn, start, order)
  return Soup(cast(mean, like), (members / members.sum())[:, None])


def learned(stacked: PyTree, loss: Callable, batches: PyTree, *, unit: PyTree,
                 lr: float) -> Soup:
  """Learns softmax weights of the models, initially equal, by Adam.

  That is the authors' AdamW, whose decay they set to 0. The temperature that they learn with the
  weights is left out, as it changes no prediction (our choice).

  Args:
    stacked: leaves [K, ...].
    loss: (params, batch) -> scalar.
    batches: [T, ...], one per step.
    unit: of each leaf.
    lr: of Adam.

  Reference: Wortsman et al. Model soups. ICML 2022. arXiv:2203.05482, appendix I.
  """
  count = tree.count(stacked)
  weights = lambda c: jax.nn.softmax(c, axis=0)
  mix = lambda c: jax.tree.map(lambda u, x: tree.mix(weights(c)[:, u], x), unit, stacked)
  c = adam(lambda c, batch: loss(mix(c), batch), jnp.zeros((count, atlas.count(unit))),
              batches, lr, lambda c: c)
  return Soup(mix(c), weights(c))


def greedy_soup() -> Callable:
  """Returns the greedy soup, by accuracy on the examples, or by the loss of tasks without one."""

  def apply(model, stacked, base, examples, rows, key):
    del base, key
    logits = logits_of(model, stacked)

    def gain(params, own):
      batch = take(examples, own)
      predicted = logits(params, batch)
      right = model.task.scores(predicted, batch.y).get('accuracy')
      values = -model.task.loss(predicted, batch.y) if right is None else right
      return jnp.where(batch.mask, values, 0).sum()

    # A sum: means of as many right answers may differ in their last digit.
    score = lambda params: lax.map(lambda own: gain(params, own), pooled(rows)).sum()
    return greedy(stacked['params'], score).params

  return apply


def learned_soup(*, by: str = 'model', lr: float = 0.05, epochs: int = 5) -> Callable:
  """Returns the learned soup, by the loss on the examples.

  Args:
    by: which parameters share weights, one of `UNITS`.
    lr: of Adam.
    epochs: passes over the examples.
  """
  check(by, lr, 'epochs', epochs)

  def apply(model, stacked, base, examples, rows, key):
    del base
    logits = logits_of(model, stacked)

    def loss(params, own):
      batch = take(examples, own)
      return masked_mean(model.task.loss(logits(params, batch), batch.y), batch.mask)

    batches = minibatches(key, rows, epochs * len(pooled(rows)))
    return learned(stacked['params'], loss, batches,
                   unit=unit_of(by, model, stacked), lr=lr).params

  return apply


GREEDY_SOUP = Operator(
    'greedy_soup', greedy_soup, ('shared init', 'network', 'data', 'labels'),
    summary='the mean of models that raise held-out accuracy, added best first',
    paper='Wortsman et al. ICML 2022. arXiv:2203.05482')
LEARNED_SOUP = Operator(
    'learned_soup', learned_soup, ('shared init', 'network', 'data', 'labels'),
    {'by': BY, 'lr': LR, 'epochs': Setting(5, 'passes over the examples', at_least=1)},
    summary='the weighted mean, by weights learned on held-out data',
    paper='Wortsman et al. ICML 2022. arXiv:2203.05482')
