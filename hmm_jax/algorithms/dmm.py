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
import optax

from hmm_jax import tree
from hmm_jax.algorithms.engines.one_shot import one_shot
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import sampling
from hmm_jax.merging import cluster, ties
from hmm_jax.merging.alignment.permutation import permute
from hmm_jax.merging.alignment.weight_matching import match_weights
from hmm_jax.merging.batch_norm import pool
from hmm_jax.merging.batch_norm.recalibrate import recalibrate
from hmm_jax.merging.data_free import distill, invert
from hmm_jax.merging.search import minibatches
from hmm_jax.registry import Method, Setting
from hmm_jax.server import pseudo_data
from hmm_jax.types import Algorithm, Examples, InputError, Model


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
    InputError: there is no normalization to invert.
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

    weights = core * sampling.by_size(clients)
    weights = jnp.where(weights.sum() > 0, weights, core)  # If nobody in it has any rows.
    weights = weights / weights.sum()
    stacked = align(core, stacked, align_key)
    merged = {'params': combine(weights, stacked, base, merge_key), **buffers(
        clients, weights, {name: x for name, x in stacked.items() if name != 'params'})}
    if inputs is None:
      return merged, facts

    x, about = inputs(merged, stacked, federation, input_key)
    classes = jax.eval_shape(bare.apply, merged, x)[0].shape[1]
    counts = sampling.label_counts(clients, federation.examples.y, classes)
    teachers = jax.tree.map(lambda x, last: jnp.append(x, last[None], axis=0), stacked, merged)
    student, losses = distillation(
        merged, teachers, weigh(teach(core, counts)), x, distil_key)
    return settle(student, x), facts | about | {
        'distil/first_loss': losses[0], 'distil/last_loss': losses[-1]}

  return merge


def pooled(clients, weights, stacked):
  """Pools the statistics of all models as if their data were one."""
  del weights
  return pool.pool(sampling.by_size(clients), stacked)


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


COMBINATIONS = ('mean', 'matching', 'ties')
BUFFERS = {'pooled': pooled, 'core': of_core}
TEACHERS = {'divergent': divergent, 'everybody': everybody}
TEACHER_WEIGHTS = {'counts': distill.by_counts, 'equal': distill.equally}
ORDERS = {'joint': distill.jointly, 'in_turn': distill.in_turn}
INVERTED = {'merged': pseudo_data.of_merged, 'each': pseudo_data.of_each}
AUGMENTATIONS = {'none': lambda pixels: invert.as_they_are, 'shift_flip': invert.shift_and_flip}
SETTINGS = {
    'threshold': Setting('mean', 'least cosine between all pairs of the core; mean: that of all pairs'),
    'merge': Setting('mean', 'of the core', choices=COMBINATIONS),
    'density': Setting(0.2, 'share of the entries of a task vector that are kept (ties)',
                       at_least=0, at_most=1),
    'buffers': Setting('pooled', "BatchNorm statistics: pooled over all models, or the core's mean",
                       choices=BUFFERS),
    'inputs': Setting('inverted', 'what the divergent models are distilled on; none: they are not',
                      choices=('inverted', 'noise', 'real', 'none')),
    'statistics_of': Setting('merged', 'the models whose statistics are inverted', choices=INVERTED),
    'batch': Setting(256, 'inputs that are inverted together', at_least=1),
    'batches': Setting(4, 'number of such batches; of each model, where each is inverted', at_least=1),
    'augment': Setting('shift_flip', 'of images, in inversion and distillation', choices=AUGMENTATIONS),
    'shift': Setting(-1, 'pixels, at most; -1: a sixteenth of the side, rounded up', at_least=-1),
    'teachers': Setting('divergent', 'the models that are distilled', choices=TEACHERS),
    'teacher_weights': Setting(
        'counts', "a teacher's weight for a class: by its examples of the class, or equal",
        choices=TEACHER_WEIGHTS),
    'order': Setting('joint', 'of the teachers', choices=ORDERS),
    'steps': Setting(500, 'steps of Adam in distillation', at_least=1),
    'distil_batch': Setting(64, 'inputs in a step', at_least=1),
    'lr': Setting(1e-3, 'learning rate of Adam', above=0),
    'temperature': Setting(1.0, 'of teachers and student', above=0),
    'keep': Setting(0.0, "weight of the merged model's own predictions", at_least=0),
    'student_statistics': Setting('frozen', 'frozen, or recalibrated on the inputs after distillation',
                                  choices=('frozen', 'recalibrated')),
}


def build_dmm(parts: Parts, settings) -> Algorithm:
  """Builds DMM.

  Raises:
    InputError: a network without BatchNorm, or a threshold that can't be read.
  """
  bare = parts.model.bare
  augment = AUGMENTATIONS[settings.augment](None if settings.shift < 0 else settings.shift)
  distillation = distill.distillation(
      bare, optax.adam(settings.lr), order=ORDERS[settings.order], steps=settings.steps,
      batch=settings.distil_batch, temperature=settings.temperature, keep=settings.keep,
      augment=augment, each=parts.mapper.each)
  merge = dmm(
      parts.model, distillation=distillation, inputs=_inputs(parts, settings, augment),
      align=match_to_core(parts.model) if settings.merge == 'matching' else as_they_are,
      combine=ties_of_core(settings.density) if settings.merge == 'ties' else mean,
      buffers=BUFFERS[settings.buffers], teach=TEACHERS[settings.teachers],
      weigh=TEACHER_WEIGHTS[settings.teacher_weights],
      settle=recalibrated(bare, settings.batch) if settings.student_statistics == 'recalibrated'
      else lambda variables, x: variables,
      threshold=threshold(settings.threshold))
  return one_shot(parts.model, parts.training(), mapper=parts.mapper, merge=merge,
                  every=parts.config.one_shot.every)


def _inputs(parts, settings, augment):
  """Makes the inputs of the distillation; None if there is none."""
  model, search = parts.model, parts.config.inversion
  count = settings.batch * settings.batches
  if settings.inputs == 'none':
    return None
  if settings.inputs != 'inverted':
    return {'noise': pseudo_data.noise, 'real': pseudo_data.real_examples}[settings.inputs](
        model, count=count)
  terms = invert.Terms(labels=search.labels, variation=search.variation, norm=search.norm)
  inversion = invert.inversion(model.bare, steps=search.steps, lr=search.lr, terms=terms,
                               augment=augment)
  return pseudo_data.inverted(
      model, inversion, whose=INVERTED[settings.statistics_of], each=parts.mapper.each,
      batch=settings.batch, batches=settings.batches)


def threshold(text: str) -> float | None:
  """Reads dmm.threshold; None for the mean over all pairs.

  Raises:
    InputError: it is neither 'mean' nor a cosine.
  """
  try:
    value = None if text == 'mean' else float(text)
  except ValueError:
    value = 2.0
  if value is not None and not -1 <= value <= 1:
    raise InputError(f'got threshold={text}; expected mean, or a cosine from -1 to 1')
  return value


def as_they_are(core, stacked, key):
  """Leaves the hidden units of all models in their order."""
  del core, key
  return stacked


def match_to_core(model: Model) -> Callable:
  """Returns the matching of every model to the first of the core, by weights."""

  def align(core, stacked, key):
    symmetry, first = model.symmetry(), tree.take(stacked, jnp.argmax(core))

    def one(variables):
      return permute(symmetry, variables, match_weights(key, symmetry, first, variables))

    return jax.lax.map(one, stacked)

  return align


def mean(weights, stacked, base, key):
  """Averages the parameters of the core."""
  del base, key
  return tree.mix(weights, stacked['params'])


def ties_of_core(density: float) -> Callable:
  """Returns TIES of the core."""

  def combine(weights, stacked, base, key):
    return ties.merge(stacked['params'], base['params'], key, weights=weights, density=density)

  return combine


def recalibrated(model: Model, batch: int) -> Callable:
  """Returns the recalibration of a student on what it was distilled on."""

  def settle(variables, x):
    count = tree.count(x)
    indices = minibatches(jax.random.key(0), jnp.arange(count), batch=batch, steps=-(-count // batch))
    return recalibrate(model, variables, Examples(x, jnp.zeros(count, int)), indices)

  return settle


METHOD = Method(
    'dmm', build_dmm, SETTINGS, kind='one-shot', needs=('all clients', 'BatchNorm'),
    summary='similar models are merged, divergent ones are distilled on inverted statistics',
    paper='Liu et al. ICASSP 2026. arXiv:2603.05957')
