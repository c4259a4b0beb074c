"""FedMerge: a few global models, and a learned merge of them for each client.

  theta_i = sum_j w_ij Theta_j,  w_i = softmax(W_i)      sent to client i
  g_i     = theta_i - LocalSGD(theta_i)                  sent back
  G_ij    = w_ij <Theta_j - theta_i, g_i>                W's gradient, of g_i for theta_i's
  W       <- W - step(p_i G_ij)                          p_i = n_i / sum n, over the participants
  Theta_j <- Theta_j - sum_i c_ij g_i                    c_ij = p_i w_ij / sum_k p_k w_kj, new W

Clients tune no parameters of their own. In the released code the inner product covers only
the classifier head, and the step is divided by the largest entry: lr S / max |S|. If W is
the same for all clients, all Theta_j get the same update, and equal Theta_j leave W
unchanged: the initial Theta_j must differ.

Our choices where the paper does not specify: with partial participation the sums are over the
participants, other rows of W are unchanged. BatchNorm statistics are merged and updated like
parameters, as in the released code, but variances are clipped at 0.

Reference: Chen, Zhou, Long, Jiang, Zhang. FedMerge: Federated Model Merging for
  Personalization. AAAI 2026. arXiv:2504.06768.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.initial import initial_models
from hmm_jax.client.optimizers import named_optimizer
from hmm_jax.merging.batch_norm.pool import nonnegative_variances
from hmm_jax.registry import Method, Setting
from hmm_jax.types import (
  Algorithm,
  Array,
  Clients,
  InputError,
  Key,
  Local,
  Mapper,
  Model,
  PyTree,
  Traffic,
)


class FedMergeState(NamedTuple):
  round: Array  # [] int32
  models: PyTree  # Theta [M, ...]
  logits: Array  # W [K, M]
  steps: PyTree  # optimizer state of each row of W, [K, ...]


def fedmerge(model: Model, local: Local, *, mapper: Mapper, models: int,
             begin: Callable, scope: Callable, rule: Callable,
             optimizer: optax.GradientTransformation, weigh: Callable, participation: int = 0,
             newcomers: int = 0, newcomer_rounds: int = 0) -> Algorithm:
  """Learns M global models and each client's merge of them.

  Args:
    model: the network.
    local: one client's training, in the paper with a proximal term of mu = 0.02.
    mapper: how clients are mapped.
    models: number of global models, M.
    begin: (model, key, M) -> the initial Theta: `initial_models` or `same_init`.
    scope: (groups) -> tree of bools, the parameters in the inner product: `head` or
      `everything`.
    rule: ([m, M]) -> [m, M], transforms p_i G_ij before the optimizer: `max_normalized` or
      `plain`.
    optimizer: optimizer of each row of W, with separate states; sgd in the paper.
    weigh: (c [m, M] = p_i w_ij) -> weights of the updates: `column_normalized` or `exact`.
    participation: clients per round, m; 0 means all.
    newcomers: number of clients, those with the last ids, that join after the run: each
      learns its row of W independently, with the final Theta fixed.
    newcomer_rounds: rounds of the newcomers.

  Raises:
    InputError: no model, or several with the same initial model.
  """
  if models < 1:
    raise InputError(f'got models={models}; expected at least 1')
  if models > 1 and begin is same_init:
    raise InputError(f'got start=same with models={models}; expected start=different, as the '
                     'weights of equal models never change')
  train = mappers.map_clients(local, mapper, start_axis=0)
  shapes = model.shapes
  size = tree.nbytes(shapes)
  inside = scope(model.groups({'params': shapes['params']}))

  def merge(logits, stacked):
    return tree.mix(jax.nn.softmax(logits), stacked)

  def weight_gradient(logits, stacked, updates):
    """Returns G, the vector-Jacobian product of the merge with the updates."""
    inner = lambda variables: tree.split(inside, {'params': variables['params']})[0]
    _, pull_back = jax.vjp(lambda w: merge(w, inner(stacked)), logits)
    return pull_back(inner(updates))[0]

  def visit(state, federation, positions, clients, key):
    """Trains clients from their merges: (updates, gradient of their rows of W, cohort)."""
    logits = state.logits[positions]
    start = merge(logits, state.models)
    trained, _, cohort = train(start, federation.examples, clients, (), key)
    updates = tree.sub(start, trained)
    return updates, weight_gradient(logits, state.models, updates), cohort

  def weight_step(state, positions, direction):
    """Updates the rows of W at `positions`, each with its own optimizer state."""
    logits, steps = state.logits[positions], tree.take(state.steps, positions)
    change, steps = jax.vmap(optimizer.update)(direction, steps, logits)
    return state._replace(logits=state.logits.at[positions].add(change),
                          steps=tree.put(state.steps, positions, steps))

  def init(key, federation):
    logits = jnp.zeros((len(federation.clients.id), models))
    return FedMergeState(
        jnp.int32(0), begin(model, key, models), logits, jax.vmap(optimizer.init)(logits))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    members, _ = settled(federation.clients, newcomers)
    chosen, _ = sampling.sample(
        tree.take(federation.clients, members), participation, cohort_key)
    positions = members[chosen]
    clients = tree.take(federation.clients, positions)  # Nobody else's rows are gathered.
    updates, gradient, cohort = visit(state, federation, positions, clients, local_key)

    shares = sampling.by_size(clients)[:, None]
    state = weight_step(state, positions, rule(shares * gradient))
    mixing = weigh(shares * jax.nn.softmax(state.logits[positions]))
    moved = tree.sub(state.models, tree.mix(mixing.T, updates))
    return state._replace(
        round=state.round + 1,
        models=nonnegative_variances(moved)), sampling.round_metrics(cohort)

  def finish(state, federation, key):
    _, new = settled(federation.clients, newcomers)
    clients = tree.take(federation.clients, new)

    def join(r, state):
      _, gradient, _ = visit(state, federation, new, clients, jax.random.fold_in(key, r))
      # Applied per client, so that a newcomer's step does not depend on other newcomers.
      direction = jax.vmap(rule)(gradient[:, None])[:, 0]
      return weight_step(state, new, direction)

    messages = jnp.float32(newcomers * newcomer_rounds)
    return (jax.lax.fori_loop(0, newcomer_rounds, join, state),
            {'messages_up': messages, 'messages_down': messages})

  return Algorithm(
      init, round, views=lambda state, _: {'clients': merge(state.logits, state.models)},
      traffic=Traffic(up=size, down=size),
      gauges=lambda state: {'weight': jax.nn.softmax(state.logits)},
      finish=finish if newcomers else None)


def settled(clients: Clients, newcomers: int) -> tuple[Array, Array]:
  """Returns the positions of the clients in the run, and of the newcomers."""
  if not newcomers:  # Sorting many clients takes longer than a round of few.
    everybody = jnp.arange(len(clients.id))
    return everybody, everybody[:0]
  order = jnp.argsort(clients.id)
  return order[:len(order) - newcomers], order[len(order) - newcomers:]


def same_init(model: Model, key: Key, count: int) -> PyTree:
  """Initializes all global models as copies of one; only useful for a single model."""
  return tree.repeat(model.init(key), count)


def head(groups: PyTree) -> PyTree:
  """Returns a mask of the classifier head, which the released code's inner product covers."""
  mask = jax.tree.map(lambda module: module == 'head', groups)
  if not any(jax.tree.leaves(mask)):
    raise InputError('got scope=head with a network whose outputs are not those of a Dense or '
                     'Linear layer; expected such a head, or scope=all')
  return mask


def everything(groups: PyTree) -> PyTree:
  """Returns a mask of all parameters, which the exact gradient's inner product covers."""
  return jax.tree.map(lambda module: True, groups)


def max_normalized(gradient: Array) -> Array:
  """Scales the largest absolute entry to 1, which bounds a step by the learning rate."""
  largest = jnp.abs(gradient).max()
  return jnp.where(largest > 0, gradient / largest, 0)


def plain(gradient: Array) -> Array:
  """Returns the gradient unchanged."""
  return gradient


def column_normalized(mixing: Array) -> Array:
  """Normalizes the weights per global model, so that its update is a mean over clients."""
  total = mixing.sum(axis=0, keepdims=True)
  return jnp.where(total > 0, mixing / total, 0)


def exact(mixing: Array) -> Array:
  """Returns the weights unchanged: those of the exact gradient."""
  return mixing


INITS = {'different': initial_models, 'same': same_init}
SCOPES = {'head': head, 'all': everything}
RULES = {'max_normalized': max_normalized, 'plain': plain}
MIXINGS = {'column': column_normalized, 'none': exact}
SETTINGS = {
    'models': Setting(5, 'number of global models', at_least=1, at_most=10**4),
    'start': Setting(
        'different', 'initial global models; same only with a single model', choices=INITS),
    'scope': Setting(
        'head', "parameters in the inner product of the weights' gradient", choices=SCOPES),
    'weight_step': Setting(
        'max_normalized', f'{", ".join(RULES)}, or an optax optimizer of the weights'),
    'weight_lr': Setting(0.01, 'learning rate of the weights', above=0),
    'normalize': Setting(
        'column', "weights of the clients' updates: normalized to a mean per global model, or "
        'those of the exact gradient', choices=MIXINGS),
    'mu': Setting(0.02, 'weight of the proximal term around the merge; 0.01 in the released code, '
                  'whose term lacks the factor 1/2', at_least=0),
    'newcomers': Setting(
        0, 'number of clients, the last ones, that join after the run and learn only their weights',
        at_least=0),
    'newcomer_rounds': Setting(20, 'rounds in which the newcomers learn their weights', at_least=0),
}


def build_fedmerge(parts: Parts, settings) -> Algorithm:
  """Builds FedMerge.

  Raises:
    InputError: several models with start=same, or an unknown weight_step.
  """
  rule = settings.weight_step
  return fedmerge(
      parts.model, parts.training(losses.proximal(parts.plain_loss(), settings.mu)),
      models=settings.models, begin=INITS[settings.start], scope=SCOPES[settings.scope],
      rule=RULES.get(rule, plain),
      optimizer=named_optimizer('fedmerge.weight_step', 'sgd' if rule in RULES else rule,
                                {'learning_rate': settings.weight_lr}, others=tuple(RULES)),
      weigh=MIXINGS[settings.normalize], newcomers=settings.newcomers,
      newcomer_rounds=settings.newcomer_rounds, **parts.cohort)


def check(config):
  """Checks that enough clients remain besides the newcomers, and that these have rounds."""
  new, rounds = config.fedmerge.newcomers, config.fedmerge.newcomer_rounds
  if config.clients and not new <= config.clients - max(config.participation, 1):
    raise InputError(f'got newcomers={new} with clients={config.clients}, participation='
                     f'{config.participation}; expected at least participation clients, and one, '
                     'besides the newcomers')
  if new and not rounds:
    raise InputError(f'got newcomer_rounds={rounds} with newcomers={new}; '
                     'expected at least 1')


METHOD = Method(
    'fedmerge', build_fedmerge, SETTINGS, kind='personal', needs=('own examples', 'no prox'),
    check=check, summary='a few global models, and a learned merge of them for each client',
    paper='Chen et al. AAAI 2026. arXiv:2504.06768')
