"""What inversion minimizes, term by term, for BatchNorm of the inputs and a linear head."""

import numpy as np


def statistics_loss(batch_stats, x):
  """L_inv of rows [B, F]: distances of their mean and biased variance."""
  return (np.linalg.norm(x.mean(axis=0) - batch_stats['mean'])
          + np.linalg.norm(x.var(axis=0) - batch_stats['var']))


def cross_entropy(params, batch_stats, x, labels):
  """Mean over rows, with the running statistics."""
  z = (x - batch_stats['mean']) / np.sqrt(batch_stats['var'] + 1e-5)
  logits = (z * params['scale'] + params['shift']) @ params['kernel'] + params['bias']
  logits = logits - logits.max(axis=1, keepdims=True)
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  return -np.mean([row[label] for row, label in zip(log_p, labels, strict=True)])


def total_variation(images):
  """Sums the lengths of all differences between neighbors: four directions, loop by loop."""
  batch, height, width, _ = images.shape
  total = 0.0
  for down, right in ((1, 0), (0, 1), (1, 1), (1, -1)):
    square = 0.0
    for b in range(batch):
      for i in range(height):
        for j in range(width):
          if i + down < height and 0 <= j + right < width:
            square += ((images[b, i + down, j + right] - images[b, i, j])**2).sum()
    total += np.sqrt(square)
  return total


def length(x):
  return np.mean([np.linalg.norm(row) for row in x])
