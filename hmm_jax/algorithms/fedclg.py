"""FedCLG: the server also trains, and its gradient corrects the clients or their aggregate.

  g_s = gradient on the server's examples at x, g_k on those of client k
  client k:    y_k <- SGD from x; in FedCLG-C every step is corrected by g_s - g_k
  aggregate:   xbar = sum_k p_k y_k; in FedCLG-S less sum_k p_k S_k lr (g_s - g_k)
  server:      x <- SGD from xbar on the server's examples

p_k = n_k / sum n over the participants, S_k is client k's number of steps. Without a correction
this is CLG-SGD. The gradients g are full-batch (our choice: minibatches in the paper).

References: Bian, Wang, Yang, Shen, Xu. Accelerating Hybrid Federated Learning Convergence
  under Partial Participation. arXiv:2304.05397. Yang, Chen, Shen. On the Convergence of Hybrid
  Server-Clients Collaborative Training. IEEE JSAC 41(3), 2023 (CLG-SGD).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.client.local import full_gradient
from hmm_jax.registry import Method
from hmm_jax.server.training import server_gradient
from hmm_jax.types import Algorithm, Array, Local, Mapper, Model, PyTree, Traffic


class FedCLGState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # x, the global model


class Guided(NamedTuple):
  """One client's training with the server's gradient, and its messages besides models.

  work: a Local whose `start` is (x, g_s).
  up:   number of gradients sent with a model to the server.
  down: number of gradients sent with a model to a client.
  """

  work: Local
  up: int
  down: int


def fedclg(model: Model, guided: Guided, *, gradient: Callable | None, server: Callable,
           mapper: Mapper, participation: int = 0) -> Algorithm:
  """Averages m of K clients each round, then trains on the server's examples.

  Args:
    model: the network.
    guided: `unguided`, `corrected_steps` (FedCLG-C) or `corrected_aggregate` (FedCLG-S).
    gradient: (variables, server, key) -> (g_s, minibatches used); None if there is no correction.
    server: function made by `training.server_training`.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all.
  """
  train = mappers.mix_clients(guided.work, mapper)
  shapes = model.shapes
  size, extra = tree.nbytes(shapes), tree.nbytes(shapes['params'])

  def init(key, federation):
    del federation
    return FedCLGState(jnp.int32(0), model.init(key))

  def round(state, federation, key):
    cohort_key, local_key, gradient_key, server_key = jax.random.split(key, 4)
    _, clients = sampling.sample(federation.clients, participation, cohort_key)
    central, minibatches = (), 0
    if gradient:
      central, minibatches = gradient(state.variables, federation.server, gradient_key)
    mixed, _, cohort = train(
        sampling.by_size(clients)[None], (state.variables, central), federation.examples,
        clients, (), local_key)
    variables, _, spent = server(tree.take(mixed, 0), (), federation.server, server_key)
    spent = spent | {'server/gradients': spent['server/gradients'] + minibatches}
    return FedCLGState(state.round + 1, variables), {
        **sampling.round_metrics(cohort), **spent}

  return Algorithm(
      init, round, views=lambda state, _: {'global': state.variables},
      traffic=Traffic(up=size + guided.up * extra, down=size + guided.down * extra))


def unguided(local: Local) -> Guided:
  """Returns local training without a correction: CLG-SGD."""

  def work(start, examples, client, extra, key):
    return local(start[0], examples, client, extra, key)

  return Guided(work, up=0, down=0)


def corrected_steps(local: Local, gradient: Callable) -> Guided:
  """Returns local training whose steps are corrected by g_s - g_k: FedCLG-C.

  Args:
    local: plain SGD on a `losses.corrected` loss.
    gradient: function made by `local.full_gradient`.
  """

  def work(start, examples, client, extra, key):
    x, central = start
    correction = tree.sub(central, gradient(x, examples, client, (), key))
    y, _, report = local(x, examples, client, correction, key)
    return y, extra, report

  return Guided(work, up=0, down=1)


def corrected_aggregate(local: Local, gradient: Callable, *, lr: float) -> Guided:
  """Returns local training whose result the server corrects by S_k lr (g_s - g_k): FedCLG-S.

  Args:
    local: plain SGD with learning rate `lr`.
    gradient: function made by `local.full_gradient`.
    lr: the clients' learning rate.
  """

  def work(start, examples, client, extra, key):
    x, central = start
    correction = tree.sub(central, gradient(x, examples, client, (), key))
    y, _, report = local(x, examples, client, (), key)
    params = tree.sub(y['params'], tree.scale(report.steps * lr, correction))
    return {**y, 'params': params}, extra, report

  return Guided(work, up=1, down=0)


def build_clg_sgd(parts: Parts, settings) -> Algorithm:
  del settings
  return fedclg(parts.model, unguided(parts.training()), gradient=None, server=parts.server_sgd(),
                **parts.cohort)


def build_fedclg_c(parts: Parts, settings) -> Algorithm:
  del settings
  train = parts.training(losses.corrected(parts.loss()))
  return _with_server_gradient(parts, corrected_steps(train, _own_gradient(parts)))


def build_fedclg_s(parts: Parts, settings) -> Algorithm:
  del settings
  return _with_server_gradient(parts, corrected_aggregate(
      parts.training(), _own_gradient(parts), lr=parts.local.lr))


def _own_gradient(parts):
  return full_gradient(parts.loss(), batch=parts.local.batch)


def _with_server_gradient(parts, guided):
  gradient = server_gradient(parts.objective(), batch=parts.config.server.batch)
  return fedclg(
      parts.model, guided, gradient=gradient, server=parts.server_sgd(), **parts.cohort)


CLG_SGD = Method(
    'clg_sgd', build_clg_sgd, kind='hybrid', needs=('server examples',),
    summary='FedAvg, then SGD on the examples of the server',
    paper='Yang, Chen, Shen. IEEE JSAC 2023')
FEDCLG_C = Method(
    'fedclg_c', build_fedclg_c, kind='hybrid', needs=('server examples', 'plain sgd'),
    summary="local steps are corrected by the server's gradient; then SGD at the server",
    paper='Bian et al. 2023. arXiv:2304.05397')
FEDCLG_S = Method(
    'fedclg_s', build_fedclg_s, kind='hybrid', needs=('server examples', 'plain sgd'),
    summary="the mean of the models is corrected by the server's gradient; then SGD at the server",
    paper='Bian et al. 2023. arXiv:2304.05397')
