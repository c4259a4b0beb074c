"""DMM: similar models are merged, divergent ones are distilled into the merge, without data.

  delta_j = theta_j - theta_0;  core C: the largest cluster of models by the angles of their deltas
  merge      theta_M = sum_{j in C} w_j theta_j,  w_j = n_j / sum of C
  buffers    mean and variance of every BatchNorm pooled over all models
  invert     pseudo-data x whose batch statistics in theta_M, or in each model, match the running
             ones
  distill    L = T^2 KL(target || p_M) + keep KL(p_M0 || p_M) on augmented x, target a mixture of
             the predictions of the teachers: the divergent models, or all of them

Reconstructed from the paper's abstract and figures; no released code. Our choices: the
clustering, which buffers are pooled over which models, the weights of the teachers' predictions,
and all numerical settings.

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
from hmm_jax.merging.batches import epoch
from hmm_jax.merging.data_free import distill, invert
from hmm_jax.registry import Method, Setting
from hmm_jax.server import pseudo_data
from hmm_jax.types import Algorithm, Examples, InputError, Model


def dmm(model: Model, *, align: Callable, combine: Callable, buffers: Callable,
        inputs: Callable | None, teach: Callable, weigh: Callable, distillation: Callable,
        settle: Callable, threshold: float | None = None) -> Callable:
  """Makes DMM's merge of K models, for `one_shot`.

  Args:
    model: the network, with BatchNorm.
    align: (core [K], stacked, key) -> stacked, with matched hidden units.
    combine: (weights [K], stacked, base, key) -> parameters of the core's merge.
    buffers: (clients, weights [K], statistics [K, ...]) -> statistics: `pooled` or `of_core`.
    inputs: (merged, stacked, federation, key) -> (x, diagnostics), of server/pseudo_data.py;
      None: no distillation.
    teach: (core [K], counts [K, C]) -> class counts of the teachers [K + 1, C], with the merge
      as the last; 0 for models that are no teachers: `divergent` or `all_models`.
    weigh: (counts [K + 1, C]) -> weights of their predictions, such as `distill.by_counts`.
    distillation: a function made by `distill.distillation` for `model.bare`.
    settle: (variables, x) -> variables with the final statistics of the student.
    threshold: minimum cosine of all pairs in a cluster; None: the mean over all pairs.

  Returns:
    (base, stacked, federation, key) -> (variables, diagnostics).

  Raises:
    InputError: the network has no BatchNorm to invert.
  """
  bare, shapes = model.bare or model, model.shapes
  if len(shapes) == 1:
    raise InputError('got algorithm=dmm with a network without BatchNorm; expected resnet or vgg16 '
                     'with norm=batch, or fusion; algorithm=merging works with any network')

  def merge(base, stacked, federation, key):
    align_key, merge_key, input_key, distil_key = jax.random.split(key, 4)
    order = jnp.argsort(federation.clients.id)  # So that results do not depend on positions.
    clients, stacked = tree.take((federation.clients, stacked), order)
    deltas = jax.tree.map(lambda x, start: x - start[None], stacked['params'], base['params'])
    similarity = cluster.similarities(deltas)
    core = cluster.largest_cluster(similarity, threshold)
    facts = {'dmm/core': core.sum().astype(jnp.float32),
             'dmm/similarity': cluster.mean_similarity(similarity)}

    weights = core * sampling.by_size(clients)
    weights = jnp.where(weights.sum() > 0, weights, core)  # If no client in it has examples.
    weights = weights / weights.sum()
    stacked = align(core, stacked, align_key)
    merged = {'params': combine(weights, stacked, base, merge_key), **buffers(
        clients, weights, tree.statistics(stacked))}
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
  """Selects the models outside the core as teachers, and the merge in the core's place.

  The merge is our choice: without it, no teacher would cover the classes that only the core has.
  If no model is outside the core there are no teachers, as distilling the merge into itself
  would only follow rounding errors.
  """
  held = jnp.where(core[:, None], counts, 0)
  others = counts - held
  merged = jnp.where(others.any(), held.sum(axis=0, keepdims=True), 0)
  return jnp.append(others, merged, axis=0)


def all_models(core, counts):
  """Selects all K models as teachers."""
  del core
  return jnp.pad(counts, ((0, 1), (0, 0)))


COMBINATIONS = ('mean', 'matching', 'ties')
BUFFERS = {'pooled': pooled, 'core': of_core}
TEACHERS = {'divergent': divergent, 'all': all_models}
TEACHER_WEIGHTS = {'counts': distill.by_counts, 'equal': distill.equally}
ORDERS = {'joint': distill.jointly, 'in_turn': distill.in_turn}
INVERTED = {'merged': pseudo_data.of_merged, 'each': pseudo_data.of_each}
AUGMENTATIONS = {'none': lambda pixels: invert.as_they_are, 'shift_flip': invert.shift_and_flip}
SETTINGS = {
    'threshold': Setting(
        'mean', 'minimum cosine of all pairs in the core; mean: the mean over all pairs'),
    'merge': Setting('mean', 'merge operator of the core', choices=COMBINATIONS),
    'density': Setting(0.2, 'share of the entries of a task vector that are kept (ties)',
                       at_least=0, at_most=1),
    'buffers': Setting('pooled', "BatchNorm statistics: pooled over all models, or the core's mean",
                       choices=BUFFERS),
    'inputs': Setting('inverted', 'inputs of the distillation; none: no distillation',
                      choices=('inverted', 'noise', 'real', 'none')),
    'statistics_of': Setting(
        'merged', 'the models whose statistics are inverted', choices=INVERTED),
    'batch': Setting(
        256, 'inputs per batch, which are synthesized jointly', at_least=1, at_most=10**6),
    'batches': Setting(
        4, 'number of batches that are synthesized; with statistics_of=each, for each model',
        at_least=1, at_most=10**6),
    'augment': Setting(
        'shift_flip', 'augmentation of images in inversion and distillation',
        choices=AUGMENTATIONS),
    'shift': Setting(
        -1, 'largest shift in pixels; -1: a sixteenth of the side, rounded up', at_least=-1,
        at_most=1000),
    'teachers': Setting('divergent', 'the models that are distilled', choices=TEACHERS),
    'teacher_weights': Setting(
        'counts', "a teacher's weight for a class: by its examples of the class, or equal",
        choices=TEACHER_WEIGHTS),
    'order': Setting('joint', 'distillation from all teachers jointly or one after another',
                     choices=ORDERS),
    'steps': Setting(500, 'steps of Adam in distillation', at_least=1),
    'distillation_batch': Setting(64, 'inputs per step of distillation', at_least=1, at_most=10**6),
    'lr': Setting(1e-3, 'learning rate of Adam', above=0),
    'temperature': Setting(1.0, 'temperature of teachers and student', above=0, at_most=1e6),
    'keep': Setting(0.0, "weight of the KL divergence from the merged model's initial predictions",
                    at_least=0),
    'student_statistics': Setting(
        'frozen', 'BatchNorm statistics of the student: frozen, or recalibrated on the inputs '
        'after distillation', choices=('frozen', 'recalibrated')),
}


def build_dmm(parts: Parts, settings) -> Algorithm:
  """Builds DMM.

  Raises:
    InputError: a network without BatchNorm, or an invalid threshold.
  """
  bare = parts.model.bare or parts.model
  augment = _augmentation(settings)
  distillation = distill.distillation(
      bare, optax.adam(settings.lr), order=ORDERS[settings.order], steps=settings.steps,
      batch=settings.distillation_batch, temperature=settings.temperature, keep=settings.keep,
      augment=augment, each=parts.mapper.each)
  merge = dmm(
      parts.model, distillation=distillation, inputs=pseudo_inputs(parts, settings),
      align=match_to_core(parts.model) if settings.merge == 'matching' else as_they_are,
      combine=ties_of_core(settings.density) if settings.merge == 'ties' else mean,
      buffers=BUFFERS[settings.buffers], teach=TEACHERS[settings.teachers],
      weigh=TEACHER_WEIGHTS[settings.teacher_weights],
      settle=recalibrated(bare, settings.batch) if settings.student_statistics == 'recalibrated'
      else lambda variables, x: variables,
      threshold=threshold(settings.threshold))
  return one_shot(parts.model, parts.training(), mapper=parts.mapper, merge=merge,
                  every=parts.config.one_shot.every)


def pseudo_inputs(parts: Parts, settings) -> Callable | None:
  """Makes the inputs of the distillation; None for no distillation."""
  model, search = parts.model, parts.config.inversion
  count = settings.batch * settings.batches
  if settings.inputs == 'none':
    return None
  if settings.inputs != 'inverted':
    return {'noise': pseudo_data.noise, 'real': pseudo_data.real_examples}[settings.inputs](
        model, count=count)
  terms = invert.Terms(labels=search.labels, variation=search.variation, norm=search.norm)
  inversion = invert.inversion(model.bare or model, steps=search.steps, lr=search.lr, terms=terms,
                               augment=_augmentation(settings))
  return pseudo_data.inverted(
      model, inversion, whose=INVERTED[settings.statistics_of], each=parts.mapper.each,
      batch=settings.batch, batches=settings.batches)


def _augmentation(settings):
  return AUGMENTATIONS[settings.augment](None if settings.shift < 0 else settings.shift)


def threshold(text: str) -> float | None:
  """Parses dmm.threshold; None for the mean over all pairs.

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
  """Returns the models without matching of hidden units."""
  del core, key
  return stacked


def match_to_core(model: Model) -> Callable:
  """Returns a function that matches every model to the first of the core, by weights."""

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
  """Returns a function that merges the core by TIES."""

  def combine(weights, stacked, base, key):
    return ties.merge(stacked['params'], base['params'], key, weights=weights, density=density)

  return combine


def recalibrated(model: Model, batch: int) -> Callable:
  """Returns a function that recalibrates the student on the inputs of the distillation."""

  def settle(variables, x):
    count = tree.count(x)
    indices = epoch(jax.random.key(0), jnp.arange(count), batch=batch)
    return recalibrate(model, variables, Examples(x, jnp.zeros(count, int)), indices)

  return settle


METHOD = Method(
    'dmm', build_dmm, SETTINGS, kind='one-shot', needs=('all clients', 'BatchNorm', 'classes'),
    summary='similar models are merged, divergent ones are distilled on synthesized inputs',
    paper='Liu et al. ICASSP 2026. arXiv:2603.05957')
