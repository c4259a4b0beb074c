"""Averages of models, tensor by tensor: models are flat dicts of arrays."""

import itertools

import numpy as np


def weighted(models, weights):
  return {name: sum(w * np.float64(model[name]) for w, model in zip(weights, models))
          for name in models[0]}


def slerp(a, b, t):
  """Adds sin((1 - t) w) / sin(w) of a and sin(t w) / sin(w) of b, at an angle of w."""
  merged = {}
  for name in a:
    x, y = np.float64(a[name]), np.float64(b[name])
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    cosine = (x * y).sum() / lengths if lengths else 1.0
    if abs(cosine) > 0.9995:
      merged[name] = (1 - t) * x + t * y
    else:
      angle = np.arccos(cosine)
      merged[name] = (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)
  return merged


def model_stock(models, base):
  merged, count = {}, len(models)
  for name, start in base.items():
    start = np.float64(start)
    away = [np.ravel(np.float64(model[name]) - start) for model in models]
    cosines = []
    for x, y in itertools.combinations(away, 2):
      lengths = np.linalg.norm(x) * np.linalg.norm(y)
      cosines.append(x @ y / lengths if lengths else 0.0)
    cosine = max(np.mean(cosines), 0) if cosines else 1.0
    t = count * cosine / (1 + (count - 1) * cosine)
    mean = sum(np.float64(model[name]) for model in models) / count
    merged[name] = t * mean + (1 - t) * start
  return merged
