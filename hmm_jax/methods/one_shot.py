"""Merging once, by any operator, what was trained apart."""

from collections.abc import Callable

import jax
import numpy as np

from hmm_jax import tree
from hmm_jax.algorithms.one_shot import one_shot
from hmm_jax.client import mappers
from hmm_jax.client import participation as participate
from hmm_jax.config import suggestion
from hmm_jax.merging import activations, calibrate, matching, repair, statistics
from hmm_jax.merging.operators import OPERATORS
from hmm_jax.methods.setup import Setup
from hmm_jax.types import Algorithm, Array, Clients, InputError, Key
from hmm_jax.variants import settings


def merged_once(setup: Setup, merge: Callable) -> Algorithm:
  return one_shot(setup.net, setup.training(), mapper=setup.mapper, merge=merge,
                  every=setup.config.one_shot.every)


def operated(setup: Setup) -> Algorithm:
  """Makes the merge by an operator of the table, or by the clients' average.

  Raises:
    InputError: there is none of that name, its settings do not suit, a client has no rows, or
      units change places under statistics that do not.
  """
  settings, net = setup.config.merging, setup.net
  operator = named_merge(settings.method, settings.settings)
  check_statistics(setup)
  split = {'train': lambda f: f.clients,
           'validation': lambda f: f.validation.clients}[settings.rows]
  if len(without := np.flatnonzero(split(setup.federated).size == 0)):
    raise InputError(f'got merging.rows={settings.rows}, of which client {without[0]} has none; '
                     'expected train, or larger clients')
  finish = {'pooled': None, 'recalibrated': recalibrated, 'repaired': repaired}[settings.statistics]

  def merge(base, stacked, federation, key):
    match_key, rows_key, merge_key = jax.random.split(key, 3)
    clients, examples = federation.clients, federation.examples
    rows = drawn(rows_key, split(federation), settings.batches, settings.batch)
    pooled_rows = rows.reshape(-1, settings.batch)
    if settings.match == 'weights':
      stacked = matching.align_by_weights(match_key, net.symmetry(), stacked)
    elif settings.match == 'activations':
      stacked = activations.align_by_activations(net, stacked, examples, pooled_rows)
    share = participate.by_size(clients)
    merged = {'params': operator(net, share, stacked, base, examples, rows, merge_key), **(
        statistics.pool(share, {name: x for name, x in stacked.items() if name != 'params'}))}
    return finish(net, merged, stacked, examples, pooled_rows, share) if finish else merged, {}

  return merged_once(setup, merge)


def named_merge(name: str, pairs: tuple[str, ...]) -> Callable:
  """Returns (model, share [K], stacked, base, examples, rows, key) -> params.

  Raises:
    InputError: an unknown name, or settings that it does not have.
  """
  if name == 'average':
    return lambda net, share, stacked, *rest: tree.mix(share, stacked['params'])
  if name not in OPERATORS:
    raise InputError(f'got merging.method={name}; expected average, {", ".join(OPERATORS)}'
                     + suggestion(name, tuple(OPERATORS)))
  operator, given = OPERATORS[name], settings(pairs)
  if unknown := given.keys() - operator.settings.keys():
    raise InputError(f'got merging.settings with {", ".join(unknown)} for {name}; expected '
                     f'{", ".join(operator.settings) or "none"}')
  merge = operator.make(**given)
  if 'network' in operator.needs:
    return lambda net, share, *given: merge(net, *given)
  return lambda net, share, stacked, base, examples, rows, key: merge(
      stacked['params'], base['params'], key)


def check_statistics(setup: Setup):
  """Raises InputError if an operator moves units away from the statistics they would have."""
  settings, shapes = setup.config.merging, jax.eval_shape(setup.net.init, jax.random.key(0))
  moves = settings.method in OPERATORS and 'any start' in OPERATORS[settings.method].needs
  if moves and settings.statistics == 'pooled' and len(shapes) > 1:
    raise InputError(f'got merging.method={settings.method} with merging.statistics=pooled; '
                     'expected recalibrated, for its units change places, or merging.match with '
                     'another method')


def drawn(key: Key, clients: Clients, batches: int, batch: int) -> Array:
  """Draws batches of each client's own rows, with replacement: [K, S, B]."""

  def of(client):
    own = jax.random.randint(mappers.client_key(key, client.id), (batches, batch), 0, client.size)
    return client.index[own]

  return jax.vmap(of)(clients)


def recalibrated(net, merged, stacked, examples, rows, share):
  """Estimates the merged model's statistics on rows."""
  del stacked, share
  return calibrate.recalibrate(net, merged, examples, rows)


def repaired(net, merged, stacked, examples, rows, share):
  """Gives its units the spread that those of the models have."""
  return repair.repair(net, merged, stacked, examples, rows, weights=share)


ONE_SHOT = {'merging': operated}
