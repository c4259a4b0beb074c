"""FedPer and FedBN: a part of the model stays with its client.

  p_i, s_i <- local steps of client i from (p_i, s)
  s        <- sum_i n_i s_i / sum_i n_i              over the m participants

FedPer's p_i is the head, FedBN's is BatchNorm, its parameters and its statistics. In
FedPer statistics are shared like the rest of the trunk. FedRep is FedPer over a local
training that takes the head first.

Everybody begins from one model, p_i included, and FedPer's weights by rows hold for all
(our choices: so FedAvg is what they compare with).

Reference: Arivazhagan, Aggarwal, Singh, Choudhary. Federated Learning with Personalization
    Layers. 2019. arXiv:1912.00818.
  Li, Jiang, Zhang, Kamp, Dou. FedBN: Federated Learning on Non-IID Features via Local
    Batch Normalization. ICLR 2021. arXiv:2102.07623.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.client import mappers
from hmm_jax.client import participation as participate
from hmm_jax.types import Algorithm, Array, InputError, Local, Model, PyTree, Traffic


class FedPerState(NamedTuple):
  round: Array  # [] int32
  shared: PyTree  # s, with None for what is private
  private: PyTree  # p_i, stacked, with None for what is shared


def fedper(model: Model, local: Local, *, private: Callable, mapper: mappers.Mapper,
           participation: int = 0) -> Algorithm:
  """Averages the shared part of m of K clients each round.

  Args:
    model: the network.
    local: one client's training of the whole model.
    private: (model) -> tree of bools, the leaves that stay: `head` or `batch_norm`.
    mapper: how clients are mapped.
    participation: clients a round, m; 0 means all. The others keep their private part.
  """
  stays = private(model)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  message = tree.nbytes(tree.split(stays, shapes)[1])

  def whole(shared, examples, client, own, key):
    trained, _, report = local(tree.join(own, shared), examples, client, (), key)
    own, shared = tree.split(stays, trained)
    return shared, own, report

  train = mappers.mix_clients(whole, mapper)

  def init(key, federation):
    own, shared = tree.split(stays, model.init(key))
    return FedPerState(jnp.int32(0), shared, tree.repeat(own, len(federation.clients.id)))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    positions, clients = participate.sample(federation.clients, participation, cohort_key)
    mixed, own, cohort = train(
        participate.by_size(clients)[None], state.shared, federation.examples, clients,
        tree.take(state.private, positions), local_key)
    return FedPerState(
        state.round + 1, tree.take(mixed, 0),
        tree.put(state.private, positions, own)), participate.round_metrics(cohort)

  def views(state, federation):
    shared = tree.repeat(state.shared, len(federation.clients.id))
    return {'clients': tree.join(state.private, shared)}

  return Algorithm(init, round, views=views, traffic=Traffic(up=message, down=message))


def head(model: Model) -> PyTree:
  """Says which leaves are the classifier head.

  Raises:
    InputError: there is nothing else.
  """
  is_head = jax.tree.map(lambda group: group == 'head', _groups(model))
  if all(jax.tree.leaves(is_head)):
    raise InputError('got a network that is all head; expected one with a trunk to share, such as '
                     'model=mlp with mlp.hidden=(128,)')
  return is_head


def batch_norm(model: Model) -> PyTree:
  """Says which leaves are BatchNorm's: of a module that owns running statistics.

  Raises:
    InputError: there is none.
  """
  groups = _groups(model)
  owners = jax.tree.leaves({name: group for name, group in groups.items() if name != 'params'})
  if not owners:
    raise InputError('got algorithm=fedbn with a network without BatchNorm; expected one with, '
                     'such as model=resnet with resnet.norm=batch')
  return jax.tree.map(lambda group: group in owners, groups)


def _groups(model):
  return model.groups(jax.eval_shape(model.init, jax.random.key(0)))
