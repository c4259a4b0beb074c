"""DMM from its settings."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.algorithms import dmm
from hmm_jax.client import pseudo_data
from hmm_jax.merging import calibrate, distil, invert, matching, sparsify, task_vectors
from hmm_jax.merging.permutation import permute
from hmm_jax.merging.search import minibatches
from hmm_jax.methods.one_shot import merged_once
from hmm_jax.methods.setup import Setup
from hmm_jax.types import Algorithm, Examples, InputError, Model


def domain_adaptive(setup: Setup) -> Algorithm:
  """Makes DMM.

  Raises:
    InputError: a network without BatchNorm, or a threshold that can't be read.
  """
  settings, bare = setup.config.dmm, setup.net.bare
  lessons = distil.distillation(
      bare, optax.adam(settings.lr), steps=settings.steps, batch=settings.distil_batch,
      order={'joint': distil.jointly, 'in_turn': distil.in_turn}[settings.order],
      temperature=settings.temperature, keep=settings.keep, augment=augmentation(setup),
      each=setup.mapper.each)
  return merged_once(setup, dmm.dmm(
      setup.net, distillation=lessons, inputs=pseudo_inputs(setup),
      align={'mean': as_they_stand, 'ties': as_they_stand,
             'matching': to_the_core(setup.net)}[settings.merge],
      combine={'mean': mean, 'matching': mean, 'ties': ties}[settings.merge],
      buffers={'pooled': dmm.pooled, 'core': dmm.of_core}[settings.buffers],
      teach={'divergent': dmm.divergent, 'everybody': dmm.everybody}[settings.teachers],
      weigh={'counts': distil.by_counts, 'equal': distil.equally}[settings.words],
      settle={'frozen': as_distilled,
              're_estimated': re_estimated(bare, settings.batch)}[settings.after],
      threshold=threshold(settings.threshold)))


def augmentation(setup: Setup) -> Callable:
  """Makes what moves images in inversion and distillation."""
  settings = setup.config.dmm
  return {'none': invert.as_they_are,
          'shift_flip': invert.shift_and_flip(None if settings.shift < 0 else settings.shift),
          }[settings.augment]


def pseudo_inputs(setup: Setup) -> Callable | None:
  """Makes what DMM distils on; None if it does not."""
  net, settings, search = setup.net, setup.config.dmm, setup.config.inversion
  count = settings.batch * settings.batches
  if settings.inputs == 'none':
    return None
  if settings.inputs != 'inverted':
    return {'noise': pseudo_data.noise, 'real': pseudo_data.real_rows}[settings.inputs](
        net, count=count)
  terms = invert.Terms(labels=search.labels, variation=search.variation, length=search.length)
  found = invert.inversion(net.bare, steps=search.steps, lr=search.lr, terms=terms,
                           augment=augmentation(setup))
  whose = {'merged': pseudo_data.of_merged, 'each': pseudo_data.of_each}[settings.whose]
  return pseudo_data.inverted(net, found, whose=whose, each=setup.mapper.each,
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
    raise InputError(f'got dmm.threshold={text}; expected mean, or a cosine from -1 to 1')
  return value


def as_they_stand(core, stacked, key):
  """Leaves the units of all models in their order."""
  del core, key
  return stacked


def to_the_core(net: Model) -> Callable:
  """Returns the matching of every model to the first of the core, by weights."""

  def align(core, stacked, key):
    symmetry, first = net.symmetry(), tree.take(stacked, jnp.argmax(core))

    def one(variables):
      return permute(symmetry, variables, matching.match_weights(key, symmetry, first, variables))

    return jax.lax.map(one, stacked)

  return align


def mean(weights, stacked, base, key):
  del base, key
  return tree.mix(weights, stacked['params'])


def ties(weights, stacked, base, key):
  return task_vectors.merge(
      stacked['params'], base['params'], key, weights=weights, scale=1.0,
      sparsify=sparsify.largest(0.2, 'model'), elect=task_vectors.majority_sign,
      reduce=task_vectors.mean_of_elected)


def as_distilled(variables, x):
  del x
  return variables


def re_estimated(net: Model, batch: int) -> Callable:
  """Returns the estimation of a student's statistics on what it was distilled on."""

  def settle(variables, x):
    count = len(jax.tree.leaves(x)[0])
    rows = minibatches(jax.random.key(0), jnp.arange(count), batch=batch, steps=-(-count // batch))
    return calibrate.recalibrate(net, variables, Examples(x, jnp.zeros(count, int)), rows)

  return settle
