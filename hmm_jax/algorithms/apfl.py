"""APFL: each client mixes a personal model with the global one, by a weight that it learns.

  w_i     <- w_i - lr grad f_i(w_i)
  v_i     <- v_i - lr alpha_i grad f_i(u_i)         u_i = alpha_i v_i + (1 - alpha_i) w_i
  alpha_i <- clip(alpha_i - alpha_lr <v_i - w_i, grad f_i(u_i)>, 0, 1)
  w       <- sum_i n_i w_i / sum_i n_i              over the m participants, initially at w

A step updates all three simultaneously, on one minibatch. The paper has one learning rate;
its authors' code updates alpha in the first step of a round only, with weight decay. Clients
predict by u_i with the newest w. Weighting by number of examples is our choice, so that w is
FedAvg. BatchNorm statistics: v_i has those of u_i in training, those of w are averaged (our
choice: the paper has no such layers).

Reference: Deng, Kamani, Mahdavi. Adaptive Personalized Federated Learning. 2020.
  arXiv:2003.13461, algorithm 1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.client.local import descent, over_minibatches
from hmm_jax.registry import Method, Setting
from hmm_jax.types import Algorithm, Array, Local, Loss, Mapper, Model, PyTree, Traffic


class APFLState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # w, the global model
  personal: PyTree  # v_i, the clients' personal models, stacked
  alpha: Array  # [K] float32, weight of the personal model in each client's mixture


def apfl(model: Model, local: Local, *, mapper: Mapper, alpha: float = 0.5,
         participation: int = 0) -> Algorithm:
  """Averages m of K clients each round; these also train personal models and their weights.

  Args:
    model: the network.
    local: one client's training, a `mixture_training`.
    mapper: how clients are mapped.
    alpha: initial weight of the personal model, for every client.
    participation: clients per round, m; 0 means all. The others keep v_i and alpha_i.
  """
  train = mappers.mix_clients(local, mapper)
  size = model.nbytes

  def init(key, federation):
    w, count = model.init(key), len(federation.clients.id)
    return APFLState(
        jnp.int32(0), w, tree.repeat(w, count), jnp.full(count, alpha, jnp.float32))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    positions, clients = sampling.sample(federation.clients, participation, cohort_key)
    private = (state.personal, state.alpha)
    mixed, ours, cohort = train(
        sampling.by_size(clients)[None], state.variables, federation.examples, clients,
        tree.take(private, positions), local_key)
    return APFLState(state.round + 1, tree.take(mixed, 0),
                     *tree.put(private, positions, ours)), sampling.round_metrics(cohort)

  def views(state, federation):
    del federation
    mixtures = jax.vmap(mixture, (0, 0, None))(state.alpha, state.personal, state.variables)
    return {'global': state.variables, 'clients': mixtures}

  return Algorithm(init, round, views=views, traffic=Traffic(up=size, down=size),
                   gauges=lambda state: {'alpha': state.alpha}, stacks=('personal',))


def mixture(alpha: Array, v: PyTree, w: PyTree) -> PyTree:
  """Returns v with the parameters alpha v + (1 - alpha) w."""
  params = tree.add(tree.scale(alpha, v['params']), tree.scale(1 - alpha, w['params']))
  return {**v, 'params': params}


def mixture_training(loss: Loss, optimizer: optax.GradientTransformation, *, alpha_lr: float,
                     batch: int, epochs: int = 1, steps: int = 0) -> Local:
  """Returns local training of w_i and, as the client's `extra`, of (v_i, alpha_i).

  Both w_i and u_i minimize `loss`; w_i and v_i have separate optimizer states. `alpha_lr` is
  the learning rate of alpha_i, other arguments are those of `local_training`.
  """
  step, advance = descent(loss, optimizer), optax.with_extra_args_support(optimizer).update

  def update(carry, given, minibatch, key):
    (w, v, alpha), (w_state, v_state) = carry

    def mixed_loss(v_params, alpha):
      mixed = mixture(alpha, {**v, 'params': v_params}, w)
      params = mixed.pop('params')
      value, (after, _) = loss(params, mixed, minibatch, *given, key)
      return value, after

    (slope, alpha_slope), after = jax.grad(mixed_loss, (0, 1), has_aux=True)(v['params'], alpha)
    moves, v_state = advance(slope, v_state, v['params'], moment=minibatch.moment)
    v = {**after, 'params': optax.apply_updates(v['params'], moves)}
    (w, w_state), value = step((w, w_state), given, minibatch, key)
    alpha = jnp.clip(alpha - alpha_lr * alpha_slope, 0, 1)
    return ((w, v, alpha), (w_state, v_state)), value

  train = over_minibatches(update, batch=batch, epochs=epochs, steps=steps)

  def local(w, examples, client, private, key):
    v, alpha = private
    fresh = (optimizer.init(w['params']), optimizer.init(v['params']))
    ((w, v, alpha), _), report = train(((w, v, alpha), fresh), (w, ()), examples, client, key)
    return w, (v, alpha), report

  return local


SETTINGS = {
    'alpha': Setting(0.5, "initial weight of a client's personal model in its mixture",
                     at_least=0, at_most=1),
    'alpha_lr': Setting(0.05, 'learning rate of alpha', at_least=0),
}


def build_apfl(parts: Parts, settings) -> Algorithm:
  train = parts.training(make=partial(mixture_training, alpha_lr=settings.alpha_lr))
  return apfl(parts.model, train, alpha=settings.alpha, **parts.cohort)


METHOD = Method(
    'apfl', build_apfl, SETTINGS, kind='personal', needs=('own examples', 'no prox'),
    summary='each client mixes a personal model with the global one, by a weight that it learns',
    paper='Deng, Kamani, Mahdavi. 2020. arXiv:2003.13461')
