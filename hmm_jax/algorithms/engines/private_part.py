"""Partial model sharing: each client keeps a private part of its model, the rest is averaged.

  p_i, s_i <- local steps of client i from (p_i, s)
  s        <- sum_i n_i s_i / sum_i n_i              over the m participants

FedPer, FedRep and FedBN are this loop with different private parts p and local training.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.client import mappers, sampling
from hmm_jax.types import Algorithm, Array, InputError, Local, Mapper, Model, PyTree, Traffic


class PrivatePartState(NamedTuple):
  round: Array  # [] int32
  shared: PyTree  # s, with None for private leaves
  private: PyTree  # p_i, stacked, with None for shared leaves


def private_part(model: Model, local: Local, *, private: Callable, mapper: Mapper,
           participation: int = 0) -> Algorithm:
  """Averages the shared part of m of K clients each round.

  Args:
    model: the network.
    local: one client's training of the whole model.
    private: (model) -> tree of bools, True for private leaves: `head` or `batch_norm`.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all. The others keep their private part.
  """
  stays = private(model)
  shapes = model.shapes
  message = tree.nbytes(tree.split(stays, shapes)[1])

  def whole(shared, examples, client, own, key):
    trained, _, report = local(tree.join(own, shared), examples, client, (), key)
    own, shared = tree.split(stays, trained)
    return shared, own, report

  train = mappers.mix_clients(whole, mapper)

  def init(key, federation):
    own, shared = tree.split(stays, model.init(key))
    return PrivatePartState(jnp.int32(0), shared, tree.repeat(own, len(federation.clients.id)))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    positions, clients = sampling.sample(federation.clients, participation, cohort_key)
    mixed, own, cohort = train(
        sampling.by_size(clients)[None], state.shared, federation.examples, clients,
        tree.take(state.private, positions), local_key)
    return PrivatePartState(
        state.round + 1, tree.take(mixed, 0),
        tree.put(state.private, positions, own)), sampling.round_metrics(cohort)

  def views(state, federation):
    shared = tree.repeat(state.shared, len(federation.clients.id))
    return {'clients': tree.join(state.private, shared)}

  return Algorithm(init, round, views=views, traffic=Traffic(up=message, down=message),
                   stacks=('private',))


def head(model: Model) -> PyTree:
  """Returns a mask of the classifier head: a tree of bools.

  Raises:
    InputError: the network has no other layers.
  """
  is_head = jax.tree.map(lambda group: group == 'head', _groups(model))
  if not any(jax.tree.leaves(is_head)):
    model.head(model.shapes, None)  # A network without a head says here why it has none.
  if all(jax.tree.leaves(is_head)):
    raise InputError('got a network that is all head; expected one with a trunk to share, such as '
                     'model=mlp with mlp.hidden=(128,)')
  return is_head


def batch_norm(model: Model) -> PyTree:
  """Returns a mask of BatchNorm, the modules with running statistics: a tree of bools.

  Raises:
    InputError: the network has no BatchNorm.
  """
  groups = _groups(model)
  owners = jax.tree.leaves({name: group for name, group in groups.items() if name != 'params'})
  if not owners:
    raise InputError('got algorithm=fedbn with a network without BatchNorm; expected one with '
                     'BatchNorm, such as model=resnet with resnet.norm=batch')
  return jax.tree.map(lambda group: group in owners, groups)


def _groups(model):
  return model.groups(model.shapes)
