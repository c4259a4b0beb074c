"""Soups in plain loops: models are flat dicts of arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree

SHAPES = {'a': (3, 4), 'b': (5,), 'c': ()}
UNITS = {'model': {'a': 0, 'b': 0, 'c': 0}, 'parts': {'a': 0, 'b': 1, 'c': 1}}


def drawn(count, seed=0):
  """Returns models, a goal and a base."""
  rng = np.random.default_rng(seed)
  models = [{name: rng.normal(size=shape) for name, shape in SHAPES.items()}
            for _ in range(count + 2)]
  return models[:count], *models[count:]


def stack(models):
  return tree.stack([jax.tree.map(jnp.float32, model) for model in models])


def apart(a, b):
  """Returns the squared distance of two models."""
  return sum(jnp.square(x - y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def loss(goal):
  """Returns half the squared distance to a goal that each batch stretches."""
  goal = jax.tree.map(jnp.float32, goal)
  return lambda params, batch: apart(params, tree.scale(1 + batch, goal)) / 2


def gradient(goal):
  """Returns the gradient of that loss."""
  return lambda params, batch: {name: x - (1 + batch) * goal[name] for name, x in params.items()}


def mean(models):
  return {name: np.mean([model[name] for model in models], axis=0) for name in models[0]}


def greedy(models, score):
  """Returns who is in the soup, in the order in which they came."""
  order = sorted(range(len(models)), key=lambda k: -score(models[k]))
  members, best = [order[0]], score(models[order[0]])
  for k in order[1:]:
    value = score(mean([models[j] for j in [*members, k]]))
    if value > best:
      members, best = [*members, k], value
  return members


def mixture(models, weights, unit):
  """Returns sum_k w_ku theta_k[u], for {name: u}."""
  return {name: sum(w[u] * model[name] for w, model in zip(weights, models))
          for name, u in unit.items()}


def slope(models, unit, gradient):
  """Returns how a loss changes with each weight of a mixture, from its gradient there: [K, U]."""
  change = np.zeros((len(models), 1 + max(unit.values())))
  for k, model in enumerate(models):
    for name, u in unit.items():
      change[k, u] += (model[name] * gradient[name]).sum()
  return change


def softmax(c):
  return np.exp(c) / np.exp(c).sum(axis=0)


def adam(c, slope, batches, lr, project):
  """Returns c after a step of Adam on each batch, with slope(c, batch)."""
  first = second = np.zeros_like(c)
  for t, batch in enumerate(batches, 1):
    g = slope(c, batch)
    first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
    c = project(c - lr * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8))
  return c


def learned(models, gradient, batches, unit, lr):
  """Returns the weights [K, U] that were learned, with gradient(params, batch) of a loss."""

  def change(c, batch):
    w = softmax(c)
    by_weight = slope(models, unit, gradient(mixture(models, w, unit), batch))
    return w * (by_weight - (w * by_weight).sum(axis=0))

  start = np.zeros((len(models), 1 + max(unit.values())))
  return softmax(adam(start, change, batches, lr, lambda c: c))


def adamerging(models, base, gradient, batches, unit, initial, lr):
  """Returns lambda [K, U]."""
  deltas = [{name: model[name] - base[name] for name in base} for model in models]

  def change(c, batch):
    merged = {name: base[name] + x for name, x in mixture(deltas, c, unit).items()}
    return slope(deltas, unit, gradient(merged, batch))

  start = np.full((len(models), 1 + max(unit.values())), initial)
  return adam(start, change, batches, lr, lambda c: np.clip(c, 0, 1))
