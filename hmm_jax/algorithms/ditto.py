"""Ditto: each client also trains a personal model, kept close to the global one.

  w_i <- local steps of client i on f_i, from w
  v_i <- local steps of client i on f_i(v) + lam/2 ||v - w||^2, from v_i
  w   <- sum_i n_i w_i / sum_i n_i                     over the m participants

w in the proximal term is the model that the client received. Our choices: both trainings use
the same minibatches, so that lam = 0 is local training; weighting by number of examples, which
the paper leaves open, so that w is FedAvg; BatchNorm statistics of the v_i stay with the
clients, those of w are averaged (the paper has no such layers).

Reference: Li, Hu, Beirami, Smith. Ditto: Fair and Robust Federated Learning Through
  Personalization. ICML 2021. arXiv:2012.04221, algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.registry import Method, Setting
from hmm_jax.types import Algorithm, Array, Local, Mapper, Model, PyTree, Traffic


class DittoState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # w, the global model
  personal: PyTree  # v_i, the clients' personal models, stacked


def ditto(model: Model, local: Local, *, personal: Local, mapper: Mapper,
          participation: int = 0) -> Algorithm:
  """Averages m of K clients each round; these also train their personal models.

  Args:
    model: the network.
    local: one client's training of the global model.
    personal: one client's training of its personal model, on a `losses.proximal` loss with the
      anchor `received`.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all. The others keep their v_i.
  """
  size = model.nbytes

  def both(w, examples, client, v, key):
    trained, _, report = local(w, examples, client, (), key)
    v, _, _ = personal(v, examples, client, w['params'], key)
    return trained, v, report

  train = mappers.mix_clients(both, mapper)

  def init(key, federation):
    w = model.init(key)
    return DittoState(jnp.int32(0), w, tree.repeat(w, len(federation.clients.id)))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    positions, clients = sampling.sample(federation.clients, participation, cohort_key)
    mixed, personal, cohort = train(
        sampling.by_size(clients)[None], state.variables, federation.examples, clients,
        tree.take(state.personal, positions), local_key)
    return DittoState(
        state.round + 1, tree.take(mixed, 0),
        tree.put(state.personal, positions, personal)), sampling.round_metrics(cohort)

  def views(state, federation):
    del federation
    return {'global': state.variables, 'clients': state.personal}

  return Algorithm(init, round, views=views, traffic=Traffic(up=size, down=size),
                   stacks=('personal',))


def received(start: PyTree, extra: PyTree) -> PyTree:
  """Returns the anchor of the personal training: the parameters that the client received."""
  del start
  return extra


def build_ditto(parts: Parts, settings) -> Algorithm:
  own = losses.proximal(parts.loss(), settings.lam, anchor=received)
  return ditto(parts.model, parts.training(), personal=parts.training(own), **parts.cohort)


METHOD = Method(
    'ditto', build_ditto,
    {'lam': Setting(1.0, 'weight of the proximal term between personal and global model',
                    at_least=0)},
    kind='personal', needs=('own examples', 'no prox'),
    summary='each client trains a personal model with a proximal term around the global one',
    paper='Li et al. ICML 2021. arXiv:2012.04221')
