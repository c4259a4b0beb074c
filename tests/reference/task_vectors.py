"""Merges of task vectors, entry by entry: models are flat dicts of arrays."""

import numpy as np


def subtract(model, base):
  """Returns a task vector in the models' own precision, which decides what is as large as what."""
  return {name: model[name] - base[name] for name in base}


def largest(delta, density, scope):
  """Keeps what is at least as large as the last that must be kept."""
  groups = [list(delta)] if scope == 'model' else [[name] for name in delta]
  kept = {}
  for names in groups:
    sizes = sorted((abs(v) for name in names for v in np.ravel(delta[name])), reverse=True)
    count = round(density * len(sizes))
    least = sizes[count - 1] if count else np.inf
    for name in names:
      kept[name] = np.where(np.abs(delta[name]) >= least, delta[name], 0)
  return kept


def middle(delta, smallest, largest):
  """Keeps the middle of each tensor's entries by size, and what is as large as any of it."""
  kept = {}
  for name, x in delta.items():
    sizes = np.sort(np.abs(np.ravel(x)))
    stays = sizes[round(smallest * x.size):x.size - round(largest * x.size)]
    inside = (np.abs(x) >= stays.min()) & (np.abs(x) <= stays.max()) if stays.size else False
    kept[name] = np.where(inside, x, 0)
  return kept


def merge(base, deltas, weights, elect, reduce, scale):
  """Merges entry by entry.

  Args:
    base: {name: array}.
    deltas: [K] of those, thinned out.
    weights: [K].
    elect: 'any' or 'majority'.
    reduce: 'total', 'mean' or 'elected', by whose weight the sum is divided, if by any.
    scale: of the change.
  """
  merged = {}
  for name, start in base.items():
    out = np.array(start, np.float64)
    for place in np.ndindex(out.shape):
      votes = [(w * float(delta[name][place]), abs(w)) for w, delta in zip(weights, deltas)]
      whole = sum(v for v, _ in votes)
      chosen = votes if elect == 'any' else [(v, w) for v, w in votes if v * whole > 0]
      change = sum(v for v, _ in chosen)
      if reduce == 'mean':
        change /= sum(w for _, w in votes)
      elif reduce == 'elected' and chosen:
        change /= sum(w for _, w in chosen)
      out[place] += scale * change
    merged[name] = out
  return merged
