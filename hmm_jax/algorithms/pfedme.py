"""pFedMe: personal models are proximal points of the clients' copies of the global model.

  for each minibatch of client i
    theta_i ~ argmin_theta f_i(theta) + lam/2 ||theta - w_i||^2    by a few gradient steps
    w_i     <- w_i - lr lam (w_i - theta_i)
  w <- (1 - beta) w + beta mean_i w_i                              over the m participants

In a round, theta_i = w_i = w initially, and each minibatch continues from the current theta_i
(as in the authors' code; the paper does not specify it). The mean is uniform, as in the paper;
but there all clients train and some are averaged, whereas here only the participants train.
w has no forward pass, so its BatchNorm statistics are the mean of those of theta_i, whatever
beta is (our choice: the paper has no such layers).

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
    beta: step size towards the mean; 1 gives the mean, above 1 extrapolates.
    participation: clients per round, m; 0 means all. The others keep their theta_i.
  """
  train = mappers.mix_clients(local, mapper)
  size = model.nbytes

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

  return Algorithm(init, round, views=views, traffic=Traffic(up=size, down=size),
                   stacks=('personal',))


def moreau_training(loss: Loss, optimizer: optax.GradientTransformation, *, lr: float,
                    batch: int, epochs: int = 1, steps: int = 0, lam: float = 15.0,
                    inner_steps: int = 5) -> Local:
  """Trains w_i by proximal points; the `extra` that it returns is theta_i.

  Args:
    loss: f_i, without the proximal term.
    optimizer: optimizer of theta_i, with a fresh state for each minibatch.
    lr: the learning rate of w_i.
    batch, epochs, steps: as in `local_training`; a step is a minibatch.
    lam: weight of the proximal term.
    inner_steps: steps of theta_i per minibatch.
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
    'lam': Setting(15.0, 'weight of the proximal term between personal and global model',
                   at_least=0),
    'inner_steps': Setting(5, 'steps of the personal model per minibatch', at_least=1),
    'personal_lr': Setting(0.1, "learning rate of the personal model's steps", above=0),
    'beta': Setting(1.0, "the server's step size towards the mean", above=0),
}


def build_pfedme(parts: Parts, settings) -> Algorithm:
  make = partial(moreau_training, lr=parts.local.lr, lam=settings.lam,
                 inner_steps=settings.inner_steps)
  train = parts.training(make=make, optimizer=optax.sgd(settings.personal_lr))
  return pfedme(parts.model, train, beta=settings.beta, **parts.cohort)


METHOD = Method(
    'pfedme', build_pfedme, SETTINGS, kind='personal',
    needs=('own examples', 'no prox', 'constant lr'),
    summary='personal models are proximal points of the global model (Moreau envelopes)',
    paper='T. Dinh, Tran, Nguyen. NeurIPS 2020. arXiv:2006.08848')
