"""FedGen: a generator of features is trained on the clients' heads and regularizes their training.

  server, `steps` times:  y ~ p, e ~ N(0, I), z = G(y, e)
    G <- step along the gradient of
      mean_rows sum_k c_ky / c_y CE(head_k(z), y)  +  exp(-mean_ij |z_i - z_j| (e_i - e_j)^2)
  client k:               loss + alpha decay^round CE(head(G(y, e)), y),  y ~ p of last round
  x <- sum_k n_k / n y_k

c_ky is the number of examples of class y at participant k, c_y its sum over k, p = c / sum c;
|.| and (.)^2 are means over coordinates. In the first round the generator is untrained, and
clients do not use it, as in the published code.

Our choices where that code and the paper differ: the heads' losses are weighted by label
counts, as in the code (the paper uses the loss of the mean logits); server and clients draw
labels from p, as in the paper (the code: uniformly from the classes present); clients lack the
code's second regularizer, which pulls predictions towards those on generated features.

Reference: Zhu, Hong, Zhou. Data-Free Knowledge Distillation for Heterogeneous Federated
  Learning. ICML 2021. arXiv:2105.10056.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers, sampling
from hmm_jax.registry import Method, Setting
from hmm_jax.types import (
  Algorithm,
  Array,
  Generator,
  InputError,
  Key,
  Local,
  Loss,
  Mapper,
  Model,
  PyTree,
  Traffic,
)


class FedGenState(NamedTuple):
  round: Array  # [] int32
  variables: PyTree  # the global model
  generator: PyTree  # the generator's parameters
  server: PyTree  # the state of its optimizer
  counts: Array  # [C] float32, examples of each class at the last participants


def fedgen(model: Model, local: Local, *, generator: Generator,
           server: optax.GradientTransformation, mapper: Mapper, participation: int = 0,
           alpha: float = 10.0, decay: float = 0.98, steps: int = 50,
           batch: int = 32) -> Algorithm:
  """Averages m of K clients each round and trains a generator on their heads.

  Memory is one model and m heads. Label counts are also sent, one number per class; the
  traffic excludes them.

  Args:
    model: the network; its head is the group `head` of `Model.groups`.
    local: one client's training on a `taught` loss, whose extra argument is (weight,
      label counts, the generator's parameters).
    generator: makes features, the inputs of the head.
    server: the generator's optimizer; in the published code Adam with learning rate 3e-4
      (EMNIST: 1e-4), decayed by .98 per round, and weight decay .01.
    mapper: how clients are mapped.
    participation: clients per round, m; 0 means all.
    alpha: weight of the clients' loss on generated features.
    decay: factor of alpha per round.
    steps: steps of the generator per round.
    batch: generated features per step.

  Raises:
    InputError: a setting is out of range.
  """
  if alpha < 0 or not 0 < decay <= 1 or steps < 1 or batch < 1:
    raise InputError(
        f'got alpha={alpha}, decay={decay}, steps={steps}, batch='
        f'{batch}; expected alpha of at least 0, decay above 0 up to 1, steps and batch of at '
        'least 1')
  shapes = model.shapes
  size = tree.nbytes(shapes)
  is_head = jax.tree.map(lambda module: module == 'head', model.groups(shapes))

  def taught_local(start, examples, client, extra, key):
    received, lesson = start
    variables, _, report = local(received, examples, client, lesson, key)
    return variables, tree.split(is_head, variables)[0], report

  train = mappers.mix_clients(taught_local, mapper)

  def init(key, federation):
    del federation
    params = generator.init(jax.random.fold_in(key, 1))
    return FedGenState(
        jnp.int32(0), model.init(key), params, server.init(params), jnp.zeros(generator.classes))

  def round(state, federation, key):
    cohort_key, local_key, server_key = jax.random.split(key, 3)
    _, clients = sampling.sample(federation.clients, participation, cohort_key)
    weight = jnp.where(state.round > 0, alpha * decay**state.round, 0)
    mixed, heads, cohort = train(
        sampling.by_size(clients)[None],
        (state.variables, (weight, state.counts, state.generator)),
        federation.examples, clients, (), local_key)
    variables = tree.take(mixed, 0)

    counts = sampling.label_counts(clients, federation.examples.y, generator.classes)
    trunk = tree.split(is_head, variables)[1]  # `Model.head` expects a whole model.
    predict = lambda z: jax.vmap(lambda head: model.head(tree.join(head, trunk), z))(heads)

    def step(carry, key):
      params, server_state = carry
      gradient = jax.grad(generator_loss)(params, generator, predict, counts, key, batch=batch)
      updates, server_state = server.update(gradient, server_state, params)
      return (optax.apply_updates(params, updates), server_state), ()

    (params, server_state), _ = jax.lax.scan(
        step, (state.generator, state.server), jax.random.split(server_key, steps))
    return (FedGenState(state.round + 1, variables, params, server_state, counts.sum(0)),
            sampling.round_metrics(cohort))

  down = size + tree.nbytes(jax.eval_shape(generator.init, jax.random.key(0)))
  return Algorithm(init, round, views=lambda state, _: {'global': state.variables},
                   traffic=Traffic(up=size, down=down))


def taught(loss: Loss, model: Model, generator: Generator, *, batch: int = 32) -> Loss:
  """Adds the weighted cross-entropy of the head on `batch` generated features.

  `extra` is (weight, label counts [C], the generator's parameters).
  """

  def lesson(params, statistics, minibatch, start, extra, key):
    value, aux = loss(params, statistics, minibatch, start, (), key)
    weight, counts, generator_params = extra
    # Distinct from the two keys that the network splits from `key`.
    labels, z, _ = generate(generator, generator_params, counts, jax.random.fold_in(key, 2), batch)
    logits = model.head({'params': params, **statistics}, z)
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return value + weight * rows.mean(), aux

  return lesson


def generator_loss(params: PyTree, generator: Generator, predict: Callable, counts: Array,
                   key: Key, *, batch: int) -> Array:
  """Returns the heads' loss on generated features, plus a penalty on similar features.

  Args:
    predict: (features [B, F]) -> each participant's logits, [m, B, C].
    counts: examples of each class at each participant, [m, C].
  """
  labels, z, noise = generate(generator, params, counts.sum(0), key, batch)
  rows = optax.softmax_cross_entropy_with_integer_labels(
      predict(z), jnp.broadcast_to(labels, (len(counts), batch)))
  shares = counts / jnp.maximum(counts.sum(0, keepdims=True), 1)
  gaps = lambda x: x[:, None] - x[None]
  spread = jnp.abs(gaps(z)).mean(2) * (gaps(noise)**2).mean(2)
  return (shares[:, labels] * rows).sum(0).mean() + jnp.exp(-spread.mean())


def generate(generator: Generator, params: PyTree, counts: Array, key: Key,
             batch: int) -> tuple[Array, Array, Array]:
  """Draws labels by counts [C] and generates features.

  Returns:
    (labels [B], features [B, F], noise [B, Z]).
  """
  label_key, noise_key = jax.random.split(key)
  # Absent classes are never drawn; if all counts are 0, labels are uniform.
  logits = jnp.log(jnp.maximum(counts, 1e-30))
  labels = jax.random.categorical(label_key, logits, shape=(batch,))
  return labels, *generator.apply(params, labels, noise_key)


SETTINGS = {
    'alpha': Setting(10.0, 'weight of generated features in the local loss', at_least=0),
    'decay': Setting(
        0.98, 'factor of alpha and of the learning rate per round', above=0, at_most=1),
    'steps': Setting(50, 'steps of the generator per round', at_least=1),
    'batch': Setting(32, 'generated features per step', at_least=1, at_most=10**6),
    'lr': Setting(3e-4, 'learning rate of the generator, for Adam', above=0),
    'weight_decay': Setting(0.01, 'weight decay of the generator', at_least=0),
    'hidden': Setting(256, 'hidden units of the generator', at_least=1, at_most=10**6),
    'noise': Setting(32, "dimension of the generator's noise", at_least=1, at_most=10**6),
}


def build_fedgen(parts: Parts, settings) -> Algorithm:
  generator = parts.generator(hidden=settings.hidden, noise=settings.noise)
  rate = optax.exponential_decay(settings.lr, settings.steps, settings.decay, staircase=True)
  server = optax.chain(optax.add_decayed_weights(settings.weight_decay), optax.adam(rate))
  loss = taught(parts.loss(), parts.model, generator, batch=settings.batch)
  return fedgen(
      parts.model, parts.training(loss), generator=generator, server=server, alpha=settings.alpha,
      decay=settings.decay, steps=settings.steps, batch=settings.batch, **parts.cohort)


METHOD = Method(
    'fedgen', build_fedgen, SETTINGS, needs=('classes',),
    summary="a generator is trained on the clients' heads and regularizes local training",
    paper='Zhu, Hong, Zhou. ICML 2021. arXiv:2105.10056')
