"""FedEM: each client's data is a mixture of M shared distributions, with one model for each.

  q_i(m|x,y) ~ pi_im exp(-loss(theta_m; x, y))            E-step, by the models received
  pi_im      <- mean of q_i(m|x,y) over client i's examples
  theta_im   <- local steps from theta_m on the mean of q_i(m|x,y) loss(.; x, y)
  theta_m    <- sum_i n_i theta_im / sum_i n_i            over the m participants

Client i predicts by sum_m pi_im softmax(theta_m's logits). The models have different
initializations, as equal models would stay equal. Within a round, q is fixed by the received
models and pi. It is not stored but recomputed for each minibatch, with the same result, as it
uses evaluation mode without augmentation. Our choices: a client's models share minibatches;
their BatchNorm statistics weight all examples equally and are averaged.

Reference: Marfoq, Neglia, Bellet, Kameni, Vidal. Federated Multi-Task Learning under a
  Mixture of Distributions. NeurIPS 2021. arXiv:2108.10252, algorithm 1.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import losses, mappers, sampling, scoring
from hmm_jax.client.initial import initial_models
from hmm_jax.client.local import local_training
from hmm_jax.registry import Method, Setting
from hmm_jax.types import (
  Algorithm,
  Array,
  InputError,
  Local,
  Loss,
  Mapper,
  Mixture,
  Model,
  PyTree,
  Traffic,
)


class FedEMState(NamedTuple):
  round: Array  # [] int32
  models: PyTree  # [M, ...]
  weight: Array  # pi [K, M], rows sum to 1


def fedem(model: Model, local: Local, *, models: int, mapper: Mapper,
          participation: int = 0, batch: int = 512) -> Algorithm:
  """Averages M models over m of K clients each round; these also learn their mixture weights.

  Args:
    model: the network.
    local: one client's training of all M models, a `component_training`.
    models: number of models, M; 3 in the paper.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all. The others keep their weights.
    batch: examples scored at a time, for the weights.

  Raises:
    InputError: no model.
  """
  if models < 1:
    raise InputError(f'got models={models}; expected at least 1')
  row_losses = scoring.losses_of_models(model)
  mean_posterior = scoring.mean_over_rows(
      lambda given, minibatch: posterior(given[0], row_losses(given[1], minibatch)), batch=batch)
  message = models * model.nbytes

  def step(received, examples, client, weight, key):
    trained, _, report = local(received, examples, client, weight, key)
    after = mean_posterior((weight, received), examples, client)
    return trained, jnp.where(client.size > 0, after, weight), report

  train = mappers.mix_clients(step, mapper)

  def init(key, federation):
    equal = jnp.full((len(federation.clients.id), models), 1 / models, jnp.float32)
    return FedEMState(jnp.int32(0), initial_models(model, key, models), equal)

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    positions, clients = sampling.sample(federation.clients, participation, cohort_key)
    mixed, weight, cohort = train(
        sampling.by_size(clients)[None], state.models, federation.examples, clients,
        state.weight[positions], local_key)
    return (FedEMState(state.round + 1, tree.take(mixed, 0),
                       state.weight.at[positions].set(weight)), sampling.round_metrics(cohort))

  return Algorithm(init, round,
                   views=lambda state, _: {'clients': Mixture(state.models, state.weight)},
                   traffic=Traffic(up=message, down=message),
                   gauges=lambda state: {'weight': state.weight})


def posterior(weight: Array, row_losses: Array) -> Array:
  """Returns q [M, B] for weights [M] and the loss of each model on each example [M, B]."""
  return jax.nn.softmax(jnp.log(weight)[:, None] - row_losses, axis=0)


def surrogate(model: Model) -> Loss:
  """Returns the M-step's loss for all M models, stacked; `extra` is the client's weights."""
  row_losses = scoring.losses_of_models(model)

  def loss(params, statistics, batch, start, weight, key):
    def one(variables):
      outputs, after = model.apply(variables, batch.x, train=True, mask=batch.mask, key=key)
      return model.task.loss(outputs, batch.y), after

    rows, variables = jax.lax.map(one, {'params': params, **statistics})
    q = posterior(weight, row_losses(start, batch))
    value = losses.masked_mean((q * rows).sum(axis=0), batch.mask)
    return value, (variables, value)

  return loss


def component_training(model: Model, optimizer: optax.GradientTransformation, *, batch: int,
                       epochs: int = 1, steps: int = 0,
                       wrap: Callable = lambda loss: loss) -> Local:
  """Trains M stacked models as `local_training` does, each with its own optimizer state.

  `wrap` is a wrapper of the loss.
  """
  advance = optax.with_extra_args_support(optimizer).update

  def update(updates, state, params=None, **others):
    return jax.vmap(lambda *own: advance(*own, **others))(updates, state, params)

  each = optax.GradientTransformationExtraArgs(jax.vmap(optimizer.init), update)
  return local_training(wrap(surrogate(model)), each, batch=batch, epochs=epochs, steps=steps)


def build_fedem(parts: Parts, settings) -> Algorithm:
  # `component_training` takes the network in place of a loss.
  train = parts.training(parts.model, make=partial(component_training, wrap=parts.accumulated))
  return fedem(parts.model, train, models=settings.models, batch=parts.config.eval_batch,
               **parts.cohort)


METHOD = Method(
    'fedem', build_fedem,
    {'models': Setting(3, 'number of models', at_least=1, at_most=10**4)}, kind='personal',
    needs=('own examples', 'plain loss'),
    summary="each client's data is a mixture of M distributions, with a shared model for each",
    paper='Marfoq et al. NeurIPS 2021. arXiv:2108.10252')
