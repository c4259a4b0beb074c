"""pFedMe: each client's model is the proximal point of the global one, which follows them.

  theta_i ~ argmin_theta f_i(theta) + lam/2 ||theta - w_i||^2    some steps, on one minibatch
  w_i     <- w_i - lr lam (w_i - theta_i)                        after each, and so on
  w       <- (1 - beta) w + beta mean_i w_i                      over the m participants

A client begins at theta_i = w_i = w, and its next minibatch where theta_i stands (as in the
authors' code: the paper is silent). The mean is uniform, as in the paper, where all clients
train though and some are averaged: here those only train. w has no forward pass, so its
BatchNorm statistics are the mean of those that theta_i meets, whatever beta is (our choice:
the paper has no such layers).

Reference: T. Dinh, Tran, Nguyen. Personalized Federated Learning with Moreau Envelopes.
  NeurIPS 2020. arXiv:2006.08848, algorithm 1.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.local import descent, over_minibatches
from hmm_jax.registry import Method, Setting
from hmm_jax.types import Algorithm, Array, Local, Loss, Mapper, Model, PyTree, Traffic


class PFedMeState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # w, the global model
  personal: PyTree  # theta_i, stacked


def pfedme(model: Model, local: Local, *, mapper: Mapper, beta: float = 1.0,
           participation: int = 0) -> Algorithm:
  """Moves the global model by beta towards the mean of m of K clients each round.

  Args:
    model: the network.
    local: one client's training, a `moreau_training`.
    mapper: how clients are mapped.
    beta: 1 takes the mean, more goes beyond it.
    participation: clients a round, m; 0 means all. The others keep their theta_i.
  """
  train = mappers.mix_clients(local, mapper)
  size = tree.nbytes(jax.eval_shape(model.init, jax.random.key(0)))

  def init(key, federation):
    w = model.init(key)
    return PFedMeState(jnp.int32(0), w, tree.repeat(w, len(federation.clients.id)))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    positions, clients = sampling.sample(federation.clients, participation, cohort_key)
    mixed, personal, cohort = train(
        sampling.uniform(clients)[None], state.variables, federation.examples, clients, (),
        local_key)
    mean, w = tree.take(mixed, 0), state.variables['params']
    params = tree.add(w, tree.scale(beta, tree.sub(mean['params'], w)))
    return PFedMeState(
        state.round + 1, {**mean, 'params': params},
        tree.put(state.personal, positions, personal)), sampling.round_metrics(cohort)

  def views(state, federation):
    del federation
    return {'global': state.variables, 'clients': state.personal}

  return Algorithm(init, round, views=views, traffic=Traffic(up=size, down=size))


def moreau_training(loss: Loss, optimizer: optax.GradientTransformation, *, lr: float,
                    batch: int, epochs: int = 1, steps: int = 0, lam: float = 15.0,
                    inner_steps: int = 5) -> Local:
  """Trains w_i by proximal points; `extra` comes back as theta_i.

  Args:
    loss: f_i, without a pull.
    optimizer: of theta_i, with a fresh state for each minibatch.
    lr: the learning rate of w_i.
    batch, epochs, steps: as in `local_training`; a step is a minibatch.
    lam: the strength of the pull.
    inner_steps: of theta_i on one minibatch.
  """
  pulled = descent(losses.proximal(loss, lam), optimizer)

  def update(carry, given, minibatch, key):
    del given
    (w, theta), = carry

    def inner(inner_carry, k):
      return pulled(inner_carry, (w, ()), minibatch, jax.random.fold_in(key, k))

    (theta, _), values = jax.lax.scan(
        inner, (theta, optimizer.init(theta['params'])), jnp.arange(inner_steps))
    away = tree.sub(w['params'], theta['params'])
    w = {**theta, 'params': tree.sub(w['params'], tree.scale(lr * lam, away))}
    return ((w, theta),), values[-1]

  train = over_minibatches(update, batch=batch, epochs=epochs, steps=steps)

  def local(start, examples, client, extra, key):
    del extra
    ((w, theta),), report = train(((start, start),), (), examples, client, key)
    return w, theta, report

  return local


SETTINGS = {
    'lam': Setting(15.0, "weight of the proximal term that ties clients' models to the global one",
                   at_least=0),
    'inner_steps': Setting(5, 'steps on one minibatch', at_least=1),
    'personal_lr': Setting(0.1, 'learning rate of these steps', above=0),
    'beta': Setting(1.0, "the server's step towards the mean", above=0),
}


def build_pfedme(parts: Parts, settings) -> Algorithm:
  make = partial(moreau_training, lr=parts.local.lr, lam=settings.lam,
                 inner_steps=settings.inner_steps)
  train = parts.training(make=make, optimizer=optax.sgd(settings.personal_lr))
  return pfedme(parts.model, train, beta=settings.beta, **parts.cohort)


METHOD = Method(
    'pfedme', build_pfedme, SETTINGS, kind='personal', needs=('own examples', 'no prox'),
    summary="clients' models are proximal points of the global one, by Moreau envelopes",
    paper='T. Dinh, Tran, Nguyen. NeurIPS 2020. arXiv:2006.08848')
