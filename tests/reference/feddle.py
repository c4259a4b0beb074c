"""Feddle line by line, on networks with one hidden layer; there is no released code."""

import numpy as np
from reference import atlas, two_layer

UNITS = {'global': [['hidden_kernel', 'hidden_bias', 'kernel', 'bias']],
         'layer': [['hidden_kernel', 'hidden_bias'], ['kernel', 'bias']]}


def local_update(start, x, y, *, epochs, lr):
  """Returns what full-batch SGD makes of a model, less the model."""
  params = start
  for _ in range(epochs if len(y) else 0):
    slope = two_layer.gradient(params, x, y)
    params = {name: params[name] - lr * slope[name] for name in params}
  return {name: params[name] - start[name] for name in params}


def coefficient_gradient(params, slots, c, scale, units, x, y):
  """Returns the gradient of the merged model's loss with respect to c, by the chain rule."""
  merged = atlas.merge(params, {s: c[s] * scale[s] for s in slots}, units, slots)
  slope = two_layer.gradient(merged, x, y)
  return {slot: np.array([
      scale[slot][u] * sum((entry['update'][name] * slope[name]).sum() for name in names)
      if entry else 0.0 for u, names in enumerate(units)]) for slot, entry in slots.items()}


def adam(params, slots, c, scale, units, batches, data, lr):
  """Yields c after each step of Adam over the batches, lists of the server's row numbers."""
  x, y = data
  first, second = ({s: np.zeros(len(units)) for s in slots} for _ in range(2))
  for step, rows in enumerate(batches, 1):
    slope = coefficient_gradient(params, slots, c, scale, units, x[rows], y[rows])
    for s in slots:
      first[s] = 0.9 * first[s] + 0.1 * slope[s]
      second[s] = 0.999 * second[s] + 0.001 * slope[s]**2
      c = {**c, s: c[s] - lr * (first[s] / (1 - 0.9**step))
           / (np.sqrt(second[s] / (1 - 0.999**step)) + 1e-8)}
    yield c


def feddle(params, clients, ids, *, count, cohorts, delays, epochs, lr, lengths='whole',
           coefficients='global', evict='came', strikes=0, memory=0.9, search=None):
  """Returns (the models of all rounds, the atlas, the coefficients [U] by client, a round each).

  Args:
    params: the first model.
    clients: a list of (x, y).
    ids: theirs.
    count: slots of the atlas.
    cohorts: for each round, the positions of its clients.
    delays: for each round, {position: rounds that its update has traveled}.
    epochs, lr: of the local training.
    lengths, coefficients, evict: as in `atlas`.
    strikes, memory: of the atlas.
    search: (number of the round) -> (batches, the server's (x, y), held-out rows, rate of Adam).
  """
  units, slots, versions, seen = UNITS[coefficients], atlas.empty(count), [params], []
  for r, cohort in enumerate(cohorts):
    arrivals = {}
    for k in sorted(cohort, key=lambda k: ids[k]):
      start = versions[max(r - delays[r][k], 0)]
      arrivals[ids[k]] = local_update(start, *clients[k], epochs=epochs, lr=lr)
    places = atlas.add(slots, arrivals, r, evict)
    scale = atlas.scales(slots, units, lengths)
    total = sum(len(clients[k][1]) for k in cohort)
    average = {slot: np.zeros(len(units)) for slot in slots}
    for k in cohort:
      slot = places[ids[k]]
      for u in range(len(units)):
        if scale[slot][u]:
          average[slot][u] = len(clients[k][1]) / total / scale[slot][u]
    c = average
    if search:
      batches, data, held_out, rate = search(r)
      points = [*adam(versions[-1], slots, average, scale, units, batches, data, rate)]
      every = min(d for d in range(1, len(points) + 1)
                  if len(points) % d == 0 and len(points) // d <= 5)
      points = [average, *points[every - 1::every]]
      losses = [two_layer.losses(
          atlas.merge(versions[-1], {s: point[s] * scale[s] for s in slots}, units, slots),
          data[0][held_out], data[1][held_out]).mean() for point in points]
      c = points[int(np.argmin(losses))]
    versions.append(atlas.merge(versions[-1], {s: c[s] * scale[s] for s in slots}, units, slots))
    seen.append({entry['owner']: (c[slot], average[slot], r - entry['came'])
                 for slot, entry in slots.items() if entry})
    atlas.judge(slots, c, memory)
    if strikes:
      atlas.drop(slots, strikes)
  return versions, slots, seen
