"""Distillation of several teachers into one student, on inputs that need no labels.

  target(y | x)  ~  (sum_t w_ty p_t(y | x)^(1/T))      for teachers t in V, normalized over y
  L = T^2 KL(target || p_M^(1/T)) + keep KL(p_M0 || p_M)

The second term keeps the student M close to M0, itself before distillation. The networks are in
evaluation mode: the student's normalization statistics stay.

References:
  Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. 2015. arXiv:1503.02531.
  Liu, Zhang, Zhang, Zhu, Wu. DMM. ICASSP 2026. arXiv:2603.05957.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.merging.search import minibatches
from hmm_jax.types import Array, Model


def distillation(model: Model, optimizer: optax.GradientTransformation, *, order: Callable,
                 steps: int, batch: int, temperature: float, keep: float, augment: Callable,
                 each: Callable) -> Callable:
  """Returns the distillation, one scan.

  Args:
    model: the network of teachers and student.
    optimizer: of the student.
    order: (weights [K, C], step, steps) -> the weights of that step: `jointly` or `in_turn`.
    steps: of the optimizer.
    batch: B, inputs per step, drawn without replacement in reshuffled epochs.
    temperature: T, of teachers and student.
    keep: weight of the second term.
    augment: (key, x) -> x.
    each: `Mapper.each`, which maps over the teachers.

  Returns:
    (student, teachers [K, ...], weights [K, C], inputs [N, ...], key) -> (student, losses [steps]).
    Teachers of weight 0 are ignored; if all weights are 0, the student stays and losses are 0.
  """
  run = lambda variables, x: model.apply(variables, x)[0]

  def distil(student, teachers, weights, inputs, key):
    draw_key, augment_key = jax.random.split(key)
    rest = tree.statistics(student)
    count = tree.count(inputs)
    rows = minibatches(draw_key, jnp.arange(count), batch=batch, steps=steps)

    def loss(params, x, target, before):
      logits = run({**rest, 'params': params}, x)
      divergence = optax.losses.kl_divergence(jax.nn.log_softmax(logits / temperature), target)
      kept = optax.losses.kl_divergence(jax.nn.log_softmax(logits), before)
      return temperature**2 * divergence.mean() + keep * kept.mean()

    def step(carry, at):
      params, state = carry
      number, chosen = at
      x = augment(jax.random.fold_in(augment_key, number),
                  jax.tree.map(lambda leaf: leaf[chosen], inputs))
      logits = each(lambda x, teacher: run(teacher, x), x, teachers)
      target = mixture(jax.nn.softmax(logits / temperature), order(weights, number, steps))
      before = jax.nn.softmax(run(student, x))
      value, gradient = jax.value_and_grad(loss)(params, x, target, before)
      change, state = optimizer.update(gradient, state, params)
      return (optax.apply_updates(params, change), state), value

    start = (student['params'], optimizer.init(student['params']))
    (params, _), losses = lax.scan(step, start, (jnp.arange(steps), rows))
    any_teacher = weights.any()
    params = jax.tree.map(
        lambda new, old: jnp.where(any_teacher, new, old), params, student['params'])
    return {**rest, 'params': params}, jnp.where(any_teacher, losses, 0)

  return distil


def mixture(said: Array, weights: Array) -> Array:
  """Mixes teachers' probabilities [K, B, C] by weights [K, C] of each class: [B, C], normalized.

  An input whose likely classes have no weight gets equal probabilities.
  """
  mixed = jnp.einsum('kbc,kc->bc', said, weights, precision='highest')
  total = mixed.sum(axis=1, keepdims=True)
  return jnp.where(total > 0, mixed / jnp.where(total > 0, total, 1), 1 / mixed.shape[1])


def by_counts(counts: Array) -> Array:
  """Returns each teacher's share of the examples of a class: n_ty / sum_t n_ty, [K, C].

  A teacher of one class predicts it for every input: without examples of a class its weight is 0.
  A class without examples has weight 0 for all teachers (our choice).

  Args:
    counts: [K, C], examples of each class; 0 for models that are not teachers.
  """
  return counts / jnp.maximum(counts.sum(axis=0, keepdims=True), 1)


def equally(counts: Array) -> Array:
  """Returns equal weights of all teachers that have examples, on every class: [K, C]."""
  teacher = counts.any(axis=1, keepdims=True)
  return jnp.broadcast_to(teacher / jnp.maximum(teacher.sum(), 1), counts.shape)


def jointly(weights: Array, step: Array, steps: int) -> Array:
  """Returns the weights of all teachers at every step."""
  del step, steps
  return weights


def in_turn(weights: Array, step: Array, steps: int) -> Array:
  """Returns the weights of one teacher at a time, each for an equal share of the steps.

  Early teachers are partly forgotten; offered for comparison.
  """
  teacher = weights.any(axis=1)
  rank = jnp.cumsum(teacher) - 1
  now = step * teacher.sum() // steps
  return jnp.where((teacher & (rank == now))[:, None], weights, 0)
