"""MOON: a contrastive term keeps each client's features near the global model's.

  z, z_g, z_p = features of an example under the model in training, under the global model
    that the client received, and under the client's own model of its last round
  loss + mu * mean_rows -log( e^(cos(z, z_g)/tau) / (e^(cos(z, z_g)/tau) + e^(cos(z, z_p)/tau)) )
  x <- sum_i n_i / n y_i                         over the m participants

In a client's first round, the initial model is its previous model. The paper puts a
projection head of two layers between trunk and classifier and compares its outputs; here
the representation is the input of the classifier head, so that networks are those of the
other methods (our choice). A network without a trunk has constant features: then the
method is FedAvg.

Reference: Li, He, Song. Model-Contrastive Federated Learning. CVPR 2021.
  arXiv:2103.16257.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import losses, mappers, sampling
from hmm_jax.registry import Method, Setting
from hmm_jax.types import Algorithm, Array, InputError, Local, Loss, Mapper, Model, PyTree, Traffic


class MoonState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # the global model
  previous: PyTree  # the clients' models of their last rounds, stacked


def moon(model: Model, local: Local, *, mapper: Mapper,
         participation: int = 0) -> Algorithm:
  """Averages m of K clients each round, and keeps every client's last model.

  Memory is O(K) models.

  Args:
    model: the network.
    local: one client's training on a `contrastive` loss, whose extra argument is the
      client's previous model.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all.
  """
  size = model.nbytes

  def remembering_local(start, examples, client, previous, key):
    variables, _, report = local(start, examples, client, previous, key)
    return variables, variables, report

  train = mappers.mix_clients(remembering_local, mapper)

  def init(key, federation):
    variables = model.init(key)
    return MoonState(jnp.int32(0), variables, tree.repeat(variables, len(federation.clients.id)))

  def round(state, federation, key):
    cohort_key, local_key = jax.random.split(key)
    positions, clients = sampling.sample(federation.clients, participation, cohort_key)
    mixed, models, cohort = train(
        sampling.by_size(clients)[None], state.variables, federation.examples, clients,
        tree.take(state.previous, positions), local_key)
    previous = tree.put(state.previous, positions, models)
    return (MoonState(state.round + 1, tree.take(mixed, 0), previous),
            sampling.round_metrics(cohort))

  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=size, down=size), stacks=('previous',))


def contrastive(loss: Loss, model: Model, *, mu: float = 1.0, tau: float = 0.5) -> Loss:
  """Adds mu times a contrastive term on features; `extra` is the client's previous model.

  Global and previous model run in evaluation mode: if the network augments its inputs in
  training, these two get inputs without augmentation (our choice: in the paper all three
  models get the same augmented inputs). A step needs forward passes through three models,
  and two backward passes through one.

  Args:
    loss: the loss to regularize.
    model: the network.
    mu: weight of the term. The paper tunes it over 0.1, 1, 5 and 10; best are 5 on CIFAR-10,
      1 on CIFAR-100 and Tiny-ImageNet.
    tau: temperature.

  Raises:
    InputError: a setting is out of range.
  """
  if mu < 0 or tau <= 0:
    raise InputError(f'got mu={mu}, tau={tau}; expected mu of at least 0 and tau above 0')

  def contrasted(params, statistics, batch, start, extra, key):
    value, aux = loss(params, statistics, batch, start, (), key)
    # The same forward pass as in the loss, with the same key: XLA computes it once.
    z = unit(model.features(
        {'params': params, **statistics}, batch.x, train=True, mask=batch.mask, key=key))
    near, far = ((z * unit(model.features(other, batch.x))).sum(1) / tau
                 for other in (start, extra))
    # -log(e^near / (e^near + e^far)), without overflow for small tau.
    return value + mu * losses.masked_mean(jax.nn.softplus(far - near), batch.mask), aux

  return contrasted


def unit(z: Array) -> Array:
  """Scales features of B examples to norm 1, as [B, F]; zeros stay, with a finite gradient."""
  z = z.reshape(len(z), -1)
  return z * jax.lax.rsqrt(jnp.maximum((z * z).sum(1, keepdims=True), 1e-16))


SETTINGS = {
    'mu': Setting(1.0, 'weight of the contrastive term', at_least=0),
    'tau': Setting(0.5, 'temperature of the contrastive term', above=0, at_most=1e6),
}


def build_moon(parts: Parts, settings) -> Algorithm:
  loss = contrastive(parts.loss(), parts.model, mu=settings.mu, tau=settings.tau)
  parts.features()  # Raises InputError if there is no head that reads them.
  return moon(parts.model, parts.training(loss), **parts.cohort)


METHOD = Method(
    'moon', build_moon, SETTINGS,
    summary="a contrastive term keeps local features near the global model's",
    paper='Li, He, Song. CVPR 2021. arXiv:2103.16257')
