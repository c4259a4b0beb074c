"""Merging: clients train independently, and their models are merged once by any operator.

  theta_k <- LocalSGD(theta_0; D_k) for all rounds
  theta   <- merge(theta_0, theta_1 .. theta_K)

merge is an operator of hmm_jax/merging or FedAvg's mean, optionally after hidden units are matched.
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
    'method': Setting(
        'average', 'average, weighted by number of examples, or the name of a merge operator'),
    'settings': Setting((), "settings of the operator, such as ('density=0.1',)"),
    'match': Setting(
        'none', 'matching of hidden units before the merge: by weights or activations',
        choices=MATCHES),
    'rows': Setting(
        'validation', "split of the clients' examples that operators and statistics use",
        choices=EXAMPLES),
    'batches': Setting(
        8, 'minibatches per client that operators and statistics use', at_least=1, at_most=10**6),
    'batch': Setting(32, 'examples per minibatch', at_least=1, at_most=10**6),
    'statistics': Setting(
        'pooled', "the merged model's BatchNorm statistics: pooled, recalibrated, or REPAIR of all "
        'hidden units', choices=STATISTICS),
}


def build_merging(parts: Parts, settings) -> Algorithm:
  """Builds one-shot merging by an operator, or by the clients' average.

  Raises:
    InputError: an unknown operator or setting, a client without examples, or pooled statistics
      with an operator that permutes hidden units.
  """
  apply = named_merge(settings.method, settings.settings)
  check_statistics(parts, settings)
  split, model = EXAMPLES[settings.rows], parts.model
  if len(without := np.flatnonzero(split(parts.federation).size == 0)):
    raise InputError(f'got rows={settings.rows}, but client {without[0]} has no such examples; '
                     'expected train, or more examples per client')

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
    InputError: an unknown operator or setting.
  """
  if name == 'average':
    if pairs:
      raise InputError(f'got settings={pairs} with method=average, which has none; expected ()')
    return lambda model, share, stacked, *rest: tree.mix(share, stacked['params'])
  operator = find('merging.method', name, OPERATORS, Operator)
  merge = operator.make(**read_settings(operator, pairs, 'merging.settings'))
  if 'network' in operator.needs:
    return lambda model, share, *given: merge(model, *given)
  return lambda model, share, stacked, base, examples, indices, key: merge(
      stacked['params'], base['params'], key)


def check_statistics(parts: Parts, settings):
  """Raises InputError if the operator permutes hidden units but statistics are pooled."""
  operator = OPERATORS.get(settings.method)
  has_statistics = len(parts.model.shapes) > 1
  permutes = operator is not None and 'any init' in operator.needs
  if permutes and settings.statistics == 'pooled' and has_statistics:
    raise InputError(f'got method={settings.method} with statistics=pooled; '
                     'expected recalibrated, as the method permutes hidden units, or merging.match '
                     'with another method')


def draw(key: Key, clients: Clients, batches: int, batch: int) -> Array:
  """Draws batches of each client's own examples, with replacement: [K, S, B]."""

  def of(client):
    own = jax.random.randint(client_key(key, client.id), (batches, batch), 0, client.size)
    return client.index[own]

  return jax.vmap(of)(clients)


METHOD = Method(
    'merging', build_merging, SETTINGS, kind='one-shot', needs=('all clients',),
    summary='clients train independently; their models are merged once by any operator')
