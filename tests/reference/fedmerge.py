"""FedMerge line by line (Chen et al. 2026), on networks with one hidden layer."""

import numpy as np
from reference import two_layer

HEAD = ('kernel', 'bias')


def softmax(row):
  z = np.exp(row - row.max())
  return z / z.sum()


def merge(logits, models):
  """Returns sum_j softmax(logits)_j models[j]."""
  return {name: sum(w * m[name] for w, m in zip(softmax(logits), models, strict=True))
          for name in models[0]}


def local_update(start, x, y, *, epochs, lr, mu):
  """Returns start minus what full-batch SGD with a proximal term makes of it."""
  params = start
  for _ in range(epochs if len(y) else 0):
    slope = two_layer.gradient(params, x, y)
    params = {n: params[n] - lr * (slope[n] + mu * (params[n] - start[n])) for n in params}
  return {n: start[n] - params[n] for n in params}


def weight_gradient(logits, models, merged, update, names):
  """Returns w_j <Theta_j - theta, g> over the named parameters, for each j."""
  return np.array([
      w * sum(((m[n] - merged[n]) * update[n]).sum() for n in names)
      for w, m in zip(softmax(logits), models, strict=True)])


def fedmerge(models, logits, clients, *, cohorts, epochs, lr, mu=0.02, scope='head',
             rule='max_normalized', weight_lr=0.01, normalize='column'):
  """Returns (models, logits) after a round for each cohort.

  Args:
    models: the first Theta, a list.
    logits: the first W, [K, M].
    clients: a list of (x, y).
    cohorts: for each round, the positions of its clients.
    epochs, lr, mu: of the local training.
    scope, rule, weight_lr, normalize: as in the config.
  """
  logits = np.array(logits, np.float64)
  for cohort in cohorts:
    sizes = np.array([len(clients[i][1]) for i in cohort], np.float64)
    p = sizes / sizes.sum()
    merged = [merge(logits[i], models) for i in cohort]
    updates = [local_update(theta, *clients[i], epochs=epochs, lr=lr, mu=mu)
               for theta, i in zip(merged, cohort, strict=True)]
    names = HEAD if scope == 'head' else tuple(models[0])
    g = np.array([weight_gradient(logits[i], models, theta, update, names)
                  for i, theta, update in zip(cohort, merged, updates, strict=True)])
    if rule == 'max_normalized':
      total = np.abs(g).sum()
      g = g / total if total else 0 * g
    s = p[:, None] * g
    if rule == 'max_normalized':
      s = s / np.abs(s).max() if np.abs(s).max() else 0 * s
    for row, i in enumerate(cohort):
      logits[i] -= weight_lr * s[row]

    moved = []
    for j, model in enumerate(models):
      c = np.array([p[row] * softmax(logits[i])[j] for row, i in enumerate(cohort)])
      if normalize == 'column':
        c = c / c.sum()
      moved.append({n: model[n] - sum(w * u[n] for w, u in zip(c, updates, strict=True))
                    for n in model})
    models = moved
  return models, logits
