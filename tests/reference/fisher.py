"""Fisher merging, row by row: models are flat dicts of arrays, as in two_layer."""

import numpy as np
from reference import two_layer


def diagonal(params, x, labels):
  """Averages the squares of each row's own gradient."""
  total = {name: np.zeros_like(value) for name, value in params.items()}
  for row, label in zip(x, labels):
    gradient = two_layer.gradient(params, row[None], [label])
    total = {name: total[name] + gradient[name]**2 for name in total}
  return {name: value / len(x) for name, value in total.items()}


def expected(params, x, probabilities):
  """Averages over the labels that the model may draw, too."""
  count = probabilities.shape[1]
  by_row = [[diagonal(params, row[None], [label]) for label in range(count)] for row in x]
  return {name: np.mean([sum(p[c] * each[c][name] for c in range(count))
                         for p, each in zip(probabilities, by_row)], axis=0) for name in params}


def merge(models, diagonals, floor):
  merged = {}
  for name in models[0]:
    weights = [np.maximum(diagonal[name], floor) for diagonal in diagonals]
    merged[name] = (sum(w * model[name] for w, model in zip(weights, models)) / sum(weights))
  return merged
