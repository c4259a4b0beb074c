"""Merging: clients train apart, and their models are merged once by any operator.

  theta_k <- LocalSGD(theta_0; D_k) for all rounds
  theta   <- merge(theta_0, theta_1 .. theta_K)     by an operator of hmm_jax/merging, or by FedAvg's
                                                    mean; after their hidden units were matched
"""

from collections.abc import Callable

import jax
import numpy as np

from hmm_jax import tree
from hmm_jax.algorithms.engines.one_shot import one_shot
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import sampling
from hmm_jax.client.mappers import client_key
from hmm_jax.merging import OPERATORS
from hmm_jax.merging.alignment.activation_matching import align_by_activations
from hmm_jax.merging.alignment.weight_matching import align_by_weights
from hmm_jax.merging.batch_norm.pool import pool
from hmm_jax.merging.batch_norm.recalibrate import recalibrate
from hmm_jax.merging.batch_norm.repair import repair
from hmm_jax.registry import Method, Operator, Setting, find, read_settings
from hmm_jax.types import Algorithm, Array, Clients, InputError, Key

EXAMPLES = {'train': lambda f: f.clients, 'validation': lambda f: f.validation.clients}
STATISTICS = {
    'pooled': lambda model, merged, *rest: merged,
    'recalibrated': lambda model, merged, stacked, examples, indices, share: recalibrate(
        model, merged, examples, indices),
    'repaired': lambda model, merged, stacked, examples, indices, share: repair(
        model, merged, stacked, examples, indices, weights=share),
}
MATCHES = {
    'none': lambda model, stacked, examples, indices, key: stacked,
    'weights': lambda model, stacked, examples, indices, key: align_by_weights(
        key, model.symmetry(), stacked),
    'activations': lambda model, stacked, examples, indices, key: align_by_activations(
        model, stacked, examples, indices),
}
SETTINGS = {
    'method': Setting('average', "average: by the clients' examples; or a merge operator"),
    'settings': Setting((), "of the operator, such as ('density=0.1',)"),
    'match': Setting('none', 'what hidden units are matched by before the merge', choices=MATCHES),
    'rows': Setting('validation', "the clients' own examples, for operators that need data",
                    choices=EXAMPLES),
    'batches': Setting(8, 'minibatches of them, for each client', at_least=1),
    'batch': Setting(32, 'examples in a minibatch', at_least=1),
    'statistics': Setting(
        'pooled', "the merged model's BatchNorm statistics: pooled, recalibrated, or the spread of "
        'all hidden units repaired', choices=STATISTICS),
}


def build_merging(parts: Parts, settings) -> Algorithm:
  """Builds one merge by an operator, or by the clients' average.

  Raises:
    InputError: an unknown operator, settings that it does not have, a client without examples, or
      hidden units that are permuted under statistics that are not.
  """
  apply = named_merge(settings.method, settings.settings)
  check_statistics(parts, settings)
  split, model = EXAMPLES[settings.rows], parts.model
  if len(without := np.flatnonzero(split(parts.federation).size == 0)):
    raise InputError(f'got rows={settings.rows}, of which client {without[0]} has none; '
                     'expected train, or larger clients')

  def merge(base, stacked, federation, key):
    match_key, draw_key, merge_key = jax.random.split(key, 3)
    examples, share = federation.examples, sampling.by_size(federation.clients)
    own = draw(draw_key, split(federation), settings.batches, settings.batch)
    pooled = own.reshape(-1, settings.batch)
    stacked = MATCHES[settings.match](model, stacked, examples, pooled, match_key)
    statistics = pool(share, tree.statistics(stacked))
    params = apply(model, share, stacked, base, examples, own, merge_key)
    merged = {'params': params, **statistics}
    return STATISTICS[settings.statistics](model, merged, stacked, examples, pooled, share), {}

  return one_shot(model, parts.training(), mapper=parts.mapper, merge=merge,
                  every=parts.config.one_shot.every)


def named_merge(name: str, pairs: tuple[str, ...]) -> Callable:
  """Returns (model, share [K], stacked, base, examples, indices, key) -> params.

  Raises:
    InputError: an unknown operator, or settings that it does not have.
  """
  if name == 'average':
    return lambda model, share, stacked, *rest: tree.mix(share, stacked['params'])
  operator = find('merging.method', name, OPERATORS, Operator)
  merge = operator.make(**read_settings(operator, pairs, 'merging.settings'))
  if 'network' in operator.needs:
    return lambda model, share, *given: merge(model, *given)
  return lambda model, share, stacked, base, examples, indices, key: merge(
      stacked['params'], base['params'], key)


def check_statistics(parts: Parts, settings):
  """Raises InputError if an operator permutes units whose statistics are pooled."""
  operator = OPERATORS.get(settings.method)
  has_statistics = len(jax.eval_shape(parts.model.init, jax.random.key(0))) > 1
  permutes = operator is not None and 'any init' in operator.needs
  if permutes and settings.statistics == 'pooled' and has_statistics:
    raise InputError(f'got method={settings.method} with statistics=pooled; '
                     'expected recalibrated, for it permutes hidden units, or merging.match with '
                     'another method')


def draw(key: Key, clients: Clients, batches: int, batch: int) -> Array:
  """Draws batches of each client's own examples, with replacement: [K, S, B]."""

  def of(client):
    own = jax.random.randint(client_key(key, client.id), (batches, batch), 0, client.size)
    return client.index[own]

  return jax.vmap(of)(clients)


METHOD = Method(
    'merging', build_merging, SETTINGS, kind='one-shot', needs=('all clients',),
    summary='clients train apart; any operator merges them once')
