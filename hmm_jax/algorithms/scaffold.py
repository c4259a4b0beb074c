"""SCAFFOLD: control variates correct every local step for client drift.

  y_i <- y_i - lr (g_i(y_i) - c_i + c)          S_i local steps from x
  c_i+ = c_i - c + (x - y_i) / (S_i lr)         option II of the paper
  x   <- x + server_lr * mean_i (y_i - x)       over the m participants
  c   <- c + m/K * mean_i (c_i+ - c_i)

BatchNorm statistics are averaged and have no control variate (our choice: the
paper has no such layers).

Reference: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh. SCAFFOLD: Stochastic
  Controlled Averaging for Federated Learning. ICML 2020. arXiv:1910.06378.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.registry import Method, Setting
from hmm_jax.types import Algorithm, Array, Local, Mapper, Model, PyTree, Traffic


class ScaffoldState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # x, the global model
  control: PyTree  # c, the server's control variate, shaped like params
  controls: PyTree  # c_i, the clients', stacked


def scaffold(model: Model, local: Local, *, lr: float, mapper: Mapper,
             server_lr: float = 1.0, participation: int = 0) -> Algorithm:
  """Averages m of K drift-corrected clients each round.

  Args:
    model: the network.
    local: plain SGD with learning rate `lr` on a `losses.corrected` loss, whose
      extra argument is the correction c - c_i.
    lr: the local learning rate, for option II.
    mapper: how clients are mapped.
    server_lr: the global step size.
    participation: clients per round, m; 0 means all.
  """
  shapes = model.shapes
  message = tree.nbytes(shapes) + tree.nbytes(shapes['params'])

  def corrected_local(start, examples, client, control_i, key):
    x, control = start
    y, _, report = local(x, examples, client, tree.sub(control, control_i), key)
    step_sum = tree.sub(x['params'], y['params'])
    # A client without examples takes no step and keeps its control variate.
    rate = jnp.where(report.steps > 0, 1 / (jnp.maximum(report.steps, 1) * lr), 0)
    change = tree.sub(tree.scale(rate, step_sum), tree.scale(report.steps > 0, control))
    return (y, change), tree.add(control_i, change), report

  train = mappers.mix_clients(corrected_local, mapper)

  def init(key, federation):
    variables = model.init(key)
    control = tree.zeros(variables['params'])
    controls = tree.zeros(tree.repeat(control, len(federation.clients.id)))
    return ScaffoldState(jnp.int32(0), variables, control, controls)

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    positions, clients = sampling.sample(federation.clients, participation, cohort_key)
    mixed, controls, cohort = train(
        sampling.uniform(clients)[None], (state.variables, state.control),
        federation.examples, clients, tree.take(state.controls, positions), local_key)
    y, change = tree.take(mixed, 0)

    x = state.variables['params']
    params = tree.add(x, tree.scale(server_lr, tree.sub(y['params'], x)))
    share = len(positions) / len(federation.clients.id)
    return ScaffoldState(
        state.round + 1, {**y, 'params': params},
        tree.add(state.control, tree.scale(share, change)),
        tree.put(state.controls, positions, controls)), sampling.round_metrics(cohort)

  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=message, down=message), stacks=('controls',))


def build_scaffold(parts: Parts, settings) -> Algorithm:
  return scaffold(parts.model, parts.training(losses.corrected(parts.loss())), lr=parts.local.lr,
                  server_lr=settings.server_lr, **parts.cohort)


METHOD = Method(
    'scaffold', build_scaffold, {'server_lr': Setting(1.0, 'step size of the server', above=0)},
    needs=('plain sgd',), summary='control variates correct every local step for client drift',
    paper='Karimireddy et al. ICML 2020. arXiv:1910.06378')
