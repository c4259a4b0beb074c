"""Feddle: client updates are merged by coefficients that are optimized on a little server data.

  client k, sent version v:   a_k = LocalSGD(omega_v; D_k) - omega_v
  server, in every round:
    ADD        the arrivals to the atlas A, in place of their clients' older updates
    NORMALIZE  abar_k = s a_k / |a_k|, s the median norm in A
    SEARCH     c = argmin L_s(omega + sum_k c_k abar_k) on the server's data, from FedAvg's point:
               c_k = p_k |a_k| / s for arrivals, p_k = n_k / sum n, and 0 for older updates
    FALL BACK  to FedAvg's point, unless c is better on held-out server examples
    UPDATE     omega <- omega + sum_k c_k abar_k
    REMOVE     the update with a negative score for many rounds

Coefficients have any sign and apply to parameters only. BatchNorm statistics are averaged
over the arrivals with weights p, or recalibrated on the server's examples.

Reconstructed from the paper's abstract and figures; no released code. Our choices: the formula
of NORMALIZE, the initial point and algorithm of the search, the rule of the fallback, which
updates are evicted and dropped, and that an update which arrives d rounds late is added to the
newest model unchanged.

Reference: Zhu, Yao, Ceritli, Ozkan, Blaschko, Noh, Min, Min, Ozay. Guided Model Merging for
  Hybrid Data Learning: Leveraging Centralized Data to Refine Decentralized Models. WACV
  2026. arXiv:2503.20138.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.client.optimizers import named_optimizer
from hmm_jax.merging import atlas as anchors
from hmm_jax.merging import recombine, search
from hmm_jax.merging.batch_norm.recalibrate import recalibrate
from hmm_jax.registry import Method, Setting
from hmm_jax.server import objectives
from hmm_jax.server.guided_search import HELD_OUT, NEVER, Guide, follow
from hmm_jax.types import Algorithm, Array, InputError, Local, Mapper, Model, PyTree, Traffic


class FeddleState(NamedTuple):
  round: Array  # [] int32
  past: PyTree  # omega [tau_max + 1, ...], the newest version first
  atlas: anchors.Atlas


def feddle(model: Model, local: Local, *, mapper: Mapper, guide: Guide | None,
           slots: int, units: Callable, lengths: Callable, eviction: Callable,
           participation: int = 0, tau_max: int = 0, strikes: int = 0, memory: float = 0.9,
           calibrate: Callable = lambda variables, federation: variables) -> Algorithm:
  """Merges the updates of m clients and older ones each round, by optimized coefficients.

  Args:
    model: the network.
    local: one client's training.
    mapper: how clients are mapped.
    guide: the search on the server's examples; None: FedAvg's point, without server examples.
    slots: capacity of the atlas, A >= m.
    units: (model, params) -> the units that have one coefficient each: `atlas.whole` or
      `recombine.layers`.
    lengths: (atlas, unit) -> factors [A, U] that normalize the updates: `atlas.to_median`,
      `atlas.to_median_by_unit` or `atlas.as_they_are`.
    eviction: which update a full atlas evicts: `atlas.oldest` or `atlas.worst`.
    participation: clients per round, m; 0 means all.
    tau_max: largest delay of an update: it is trained from the model of d rounds ago, with d
      drawn from 0 .. tau_max for each update.
    strikes: consecutive rounds with a negative score before the worst update is dropped; 0: never.
    memory: decay of an update's score, the moving average of its coefficients.
    calibrate: (variables, federation) -> variables with recalibrated statistics; by default they
      stay averaged.

  Raises:
    InputError: no slot or a negative number; from `init`: fewer slots than arrivals.
  """
  if slots < 1 or tau_max < 0 or strikes < 0:
    raise InputError(f'got atlas={slots}, tau_max={tau_max}, strikes='
                     f'{strikes}; expected atlas of at least 1, tau_max and strikes of at least 0')
  shapes = model.shapes
  unit = units(model, {'params': shapes['params']})['params']
  size = tree.nbytes(shapes)

  def stale_update(past, examples, client, delay, key):
    start = tree.take(past, delay)
    trained, _, report = local(start, examples, client, (), key)
    return {**trained, 'params': tree.sub(trained['params'], start['params'])}, delay, report

  train = mappers.map_clients(stale_update, mapper)

  def init(key, federation):
    variables, total = model.init(key), len(federation.clients.id)
    if slots < (participation or total):
      raise InputError(f'got atlas={slots} with {participation or total} clients per round; '
                       'expected at least one slot for each of these clients')
    held = min(slots, total)
    return FeddleState(jnp.int32(0), tree.repeat(variables, tau_max + 1),
                       anchors.empty(variables['params'], held))

  def round(state, federation, key):
    cohort_key, local_key, delay_key, search_key = jax.random.split(key, 4)
    _, clients = sampling.sample(federation.clients, participation, cohort_key)
    clients = tree.take(clients, jnp.argsort(clients.id))
    delays = jax.random.randint(delay_key, clients.id.shape, 0, tau_max + 1)
    updates, _, cohort = train(state.past, federation.examples, clients, delays, local_key)

    atlas, arrivals = anchors.add(
        state.atlas, updates['params'], clients.id, state.round, eviction=eviction)
    scale = lengths(atlas, unit)
    weights = jnp.zeros(len(scale)).at[arrivals].set(sampling.by_size(clients))
    average = jnp.where(scale > 0, weights[:, None] / jnp.where(scale > 0, scale, 1), 0)

    omega = tree.take(state.past, 0)
    statistics = tree.mix(sampling.by_size(clients), tree.statistics(updates))
    merge = lambda c: anchors.merge(omega['params'], c * scale, unit, atlas.updates)
    c, spent, records = average, {}, {}
    if guide:
      sent = tree.take(state.past, delays)['params']
      models = {**updates, 'params': tree.add(sent, updates['params'])}
      c, spent, records = follow(
          guide, merge, statistics, average, scale, models, federation.server, search_key)
    merged = calibrate({**statistics, 'params': merge(c)}, federation)

    past = jax.tree.map(lambda new, old: jnp.concatenate([new[None], old[:-1]]), merged, state.past)
    delay = jnp.full(len(scale), jnp.nan).at[arrivals].set(delays)
    records = records | {'anchors': {
        'valid': atlas.owner != anchors.EMPTY, 'client': atlas.owner, 'delay': delay,
        'age': state.round - atlas.came, 'coefficient': c.mean(axis=1),
        'average': average.mean(axis=1)}}
    atlas = anchors.update_scores(atlas, c, decay=memory)
    atlas = anchors.drop(atlas, strikes) if strikes else atlas
    return FeddleState(state.round + 1, past, atlas), {
        **sampling.round_metrics(cohort), **spent, 'records': records}

  return Algorithm(
      init, round, views=lambda state, _: {'global': tree.take(state.past, 0)},
      traffic=Traffic(up=size, down=size),
      tables=('anchors', 'search') if guide else ('anchors',))


UNITS = {'global': anchors.whole, 'layer': recombine.layers}
SCALES = {'whole': anchors.to_median, 'layer': anchors.to_median_by_unit,
          'none': anchors.as_they_are}
CONSTRAINTS = {'none': lambda bound: anchors.any_weights, 'convex': lambda bound: anchors.convex,
               'box': anchors.boxed}
FALLBACKS = {'held_out': HELD_OUT, 'none': NEVER}
EVICTIONS = {'oldest': anchors.oldest, 'worst': anchors.worst}
SETTINGS = {
    'atlas': Setting(50, 'number of slots for the latest updates, at most one per client',
                     at_least=1, at_most=10**5),
    'normalize': Setting(
        'whole', 'scaling to the median norm: of whole updates, of each layer, or none',
        choices=SCALES),
    'coefficients': Setting(
        'global', 'one coefficient per update, or one per layer of each update', choices=UNITS),
    'search': Setting('adam', 'evolution, none (federated averaging), or an optax optimizer'),
    'lr': Setting(0.05, 'learning rate of the optimizer, with cosine decay', above=0),
    'sigma': Setting(0.05, 'initial step size (evolution)', above=0),
    'population': Setting(16, 'candidates per step (evolution)', at_least=1, at_most=10**5),
    'checkpoints': Setting(
        5, 'candidates along a search that are evaluated on held-out examples, at most',
        at_least=1, at_most=10**5),
    'pull': Setting(0.0, 'weight of the penalty 1/2 |c - average|^2', at_least=0),
    'constraint': Setting('none', "constraint on the updates' weights", choices=CONSTRAINTS),
    'bound': Setting(1.0, 'largest weight (box)', above=0),
    'fallback': Setting(
        'held_out', 'fall back to the average unless the held-out loss improves, or never',
        choices=FALLBACKS),
    'evict': Setting('oldest', 'which update is evicted from a full atlas', choices=EVICTIONS),
    'strikes': Setting(
        5, 'consecutive rounds with a negative score before the worst update is dropped; 0: never',
        at_least=0),
    'memory': Setting(0.9, "decay of an update's score, the moving average of its coefficients",
                      at_least=0, at_most=1),
    'tau_max': Setting(0, 'largest delay of an update, in rounds', at_least=0, at_most=10**5),
    'statistics': Setting(
        'average', "BatchNorm statistics: averaged, or recalibrated on the server's examples",
        choices=('average', 'server')),
    'batches': Setting(
        32, 'minibatches to recalibrate on (statistics=server)', at_least=1, at_most=10**6),
}


def build_feddle(parts: Parts, settings) -> Algorithm:
  """Builds Feddle.

  Raises:
    InputError: an objective that does not fit the data, or an unknown search.
  """
  guide = None
  if settings.search != 'none':
    guide = parts.guide(parts.objective(), _search(parts, settings),
                        CONSTRAINTS[settings.constraint](settings.bound),
                        FALLBACKS[settings.fallback])
  calibrate = {'average': lambda variables, federation: variables,
               'server': partial(_recalibrate, parts)}[settings.statistics]
  return feddle(
      parts.model, parts.training(), guide=guide, slots=settings.atlas,
      units=UNITS[settings.coefficients], lengths=SCALES[settings.normalize],
      eviction=EVICTIONS[settings.evict], tau_max=settings.tau_max, strikes=settings.strikes,
      memory=settings.memory, calibrate=calibrate, **parts.cohort)


def _search(parts, settings):
  if settings.search == 'evolution':
    return search.evolution_search(sigma=settings.sigma, population=settings.population,
                                   pull=settings.pull, checkpoints=settings.checkpoints)
  rate = optax.cosine_decay_schedule(settings.lr, parts.config.server.steps)
  optimizer = named_optimizer('feddle.search', settings.search, {'learning_rate': rate},
                              others=('evolution', 'none'))
  return search.gradient_search(optimizer, pull=settings.pull, checkpoints=settings.checkpoints)


def _recalibrate(parts, variables, federation):
  """Recalibrates on the server's examples, with the same minibatches in every round."""
  server = federation.server
  batches = search.minibatches(jax.random.key(0), server.search, batch=parts.config.server.batch,
                               steps=parts.config.feddle.batches)
  return recalibrate(parts.model, variables, server.examples, batches)


def build_learned_soup(parts: Parts, settings) -> Algorithm:
  optimizer = optax.adamw(settings.lr, weight_decay=settings.weight_decay)
  guide = parts.guide(parts.objective(), search.gradient_search(optimizer), anchors.convex, NEVER)
  return _merge_of_arrivals(parts, guide, anchors.whole)


def build_adamerging(parts: Parts, settings) -> Algorithm:
  guide = parts.guide(objectives.entropy(parts.model),
                      search.gradient_search(optax.adam(settings.lr)), anchors.boxed(1.0), NEVER)
  return _merge_of_arrivals(parts, guide, recombine.layers)


def _merge_of_arrivals(parts, guide, units):
  """Searches over the updates of the current round only, without normalization."""
  return feddle(
      parts.model, parts.training(), guide=guide, slots=parts.config.participation or parts.clients,
      units=units, lengths=anchors.as_they_are, eviction=anchors.oldest, **parts.cohort)


def check(config):
  """Checks that normalization per layer is used with coefficients per layer."""
  settings = config.feddle
  if (settings.normalize, settings.coefficients) == ('layer', 'global'):
    raise InputError('got normalize=layer with coefficients=global; expected '
                     'coefficients=layer, as after scaling each layer no global coefficients '
                     'give the average')


FEDDLE = Method(
    'feddle', build_feddle, SETTINGS, kind='hybrid', needs=('server examples',), check=check,
    summary="recent client updates, merged by coefficients learned on the server's examples",
    paper='Zhu et al. WACV 2026. arXiv:2503.20138')
LEARNED_SOUP = Method(
    'learned_soup', build_learned_soup,
    {'lr': Setting(0.05, 'learning rate of AdamW on the weights', above=0),
     'weight_decay': Setting(1e-4, 'weight decay of AdamW', at_least=0)},
    kind='hybrid', needs=('server examples',),
    summary="each round's updates, merged by convex weights learned on the server's examples",
    paper='Wortsman et al. ICML 2022. arXiv:2203.05482')
ADAMERGING = Method(
    'adamerging', build_adamerging,
    {'lr': Setting(1e-3, 'learning rate of Adam on the weights per layer', above=0)},
    kind='hybrid', needs=('server examples',),
    summary="each round's updates, merged by weights per layer that minimize prediction entropy",
    paper='Yang et al. ICLR 2024. arXiv:2310.02575')
