"""The Dirichlet partition row by row, as the literature's code deals it."""

import numpy as np


def dirichlet_partition(labels, clients, rng, *, alpha, min_size):
  """Returns K lists of row numbers."""
  cap = len(labels) / clients
  while True:
    owned = [[] for _ in range(clients)]
    for label in np.unique(labels):
      rows = rng.permutation([row for row in range(len(labels)) if labels[row] == label])
      shares = rng.dirichlet([alpha] * clients)
      shares *= [len(mine) < cap for mine in owned]
      bounds = np.cumsum(shares / shares.sum()) * len(rows)
      for position, row in enumerate(rows):
        k = next((k for k in range(clients) if position + 0.5 < bounds[k]), clients - 1)
        owned[k].append(int(row))
    if min(len(rows) for rows in owned) >= min_size:
      return owned
