"""DMM: models that agree are merged, those that diverge are distilled into the merge, without data.

  delta_j = theta_j - theta_0;  core C: the largest cluster of models by the angles of their deltas
  merge      theta_M = sum_{j in C} w_j theta_j,  w_j = n_j / sum of C
  buffers    mean and variance of every BatchNorm pooled over all models
  invert     pseudo-data x whose statistics in theta_M, or in each teacher, are the running ones
  distil     L = T^2 KL(target || p_M) + keep KL(p_M0 || p_M) on augmented x, target a mixture of
             what the teachers, the divergent models or all of them, say of x

The paper's text was not at hand and there is no released code: this is a reconstruction from
its abstract and figures. Ours are the clustering, who pools which buffers, the weights of the
teachers' words, and every number.

Reference: Liu, Zhang, Zhang, Zhu, Wu. Domain-Adaptive Model Merging across Disconnected Modes.
  ICASSP 2026. arXiv:2603.05957.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.client import participation as participate
from hmm_jax.merging import cluster, statistics
from hmm_jax.types import InputError, Model


def dmm(model: Model, *, align: Callable, combine: Callable, buffers: Callable,
        inputs: Callable | None, teach: Callable, weigh: Callable, distillation: Callable,
        settle: Callable, threshold: float | None = None) -> Callable:
  """Makes DMM's merge of K models, for `one_shot`.

  Args:
    model: the network, with BatchNorm.
    align: (core [K], stacked, key) -> stacked, units in one order.
    combine: (weights [K], stacked, base, key) -> parameters of the core's merge.
    buffers: (clients, weights [K], statistics [K, ...]) -> statistics: `pooled` or `of_core`.
    inputs: (merged, stacked, federation, key) -> (x, facts), of client/pseudo_data.py; None:
      nothing is distilled.
    teach: (core [K], counts [K, C]) -> the rows that each teacher speaks for [K + 1, C], the
      merge last: `divergent` or `everybody`.
    weigh: (rows [K + 1, C]) -> the weights of their words, such as `distil.by_counts`.
    distillation: of `distil.distillation`, on `model.bare`.
    settle: (variables, x) -> variables, their statistics as the student needs them.
    threshold: cosine that all pairs in a cluster reach; None: the mean over all pairs.

  Returns:
    (base, stacked, federation, key) -> (variables, facts).

  Raises:
    InputError: there is no normalisation to invert.
  """
  bare, shapes = model.bare or model, jax.eval_shape(model.init, jax.random.key(0))
  if len(shapes) == 1:
    raise InputError('got algorithm=dmm with a network without BatchNorm; expected resnet or vgg16 '
                     'with norm=batch, or fusion, whose statistics are inverted; algorithm=merging '
                     'merges any network')

  def merge(base, stacked, federation, key):
    align_key, merge_key, input_key, distil_key = jax.random.split(key, 4)
    order = jnp.argsort(federation.clients.id)  # What follows does not hang on positions.
    clients, stacked = tree.take((federation.clients, stacked), order)
    deltas = jax.tree.map(lambda x, start: x - start[None], stacked['params'], base['params'])
    similarity = cluster.similarities(deltas)
    core = cluster.largest_cluster(similarity, threshold)
    facts = {'dmm/core': core.sum().astype(jnp.float32),
             'dmm/similarity': cluster.mean_similarity(similarity)}

    weights = core * participate.by_size(clients)
    weights = jnp.where(weights.sum() > 0, weights, core)  # If nobody in it has any rows.
    weights = weights / weights.sum()
    stacked = align(core, stacked, align_key)
    merged = {'params': combine(weights, stacked, base, merge_key), **buffers(
        clients, weights, {name: x for name, x in stacked.items() if name != 'params'})}
    if inputs is None:
      return merged, facts

    x, about = inputs(merged, stacked, federation, input_key)
    classes = jax.eval_shape(bare.apply, merged, x)[0].shape[1]
    counts = participate.label_counts(clients, federation.examples.y, classes)
    teachers = jax.tree.map(lambda x, last: jnp.append(x, last[None], axis=0), stacked, merged)
    student, losses = distillation(
        merged, teachers, weigh(teach(core, counts)), x, distil_key)
    return settle(student, x), facts | about | {
        'distil/first_loss': losses[0], 'distil/last_loss': losses[-1]}

  return merge


def pooled(clients, weights, stacked):
  """Pools the statistics of all models as if their data were one."""
  del weights
  return statistics.pool(participate.by_size(clients), stacked)


def of_core(clients, weights, stacked):
  """Averages the statistics of the models in the core."""
  del clients
  return tree.mix(weights, stacked)


def divergent(core, counts):
  """Lets the models outside the core teach, and the merge in the core's place (our choice).

  Without the merge, nobody would speak for the classes that only the core knows. Where no model
  is outside nobody teaches: a student that hears itself alone would follow rounding errors.
  """
  held = jnp.where(core[:, None], counts, 0)
  others = counts - held
  merged = jnp.where(others.any(), held.sum(axis=0, keepdims=True), 0)
  return jnp.append(others, merged, axis=0)


def everybody(core, counts):
  """Lets all K models teach."""
  del core
  return jnp.pad(counts, ((0, 1), (0, 0)))
