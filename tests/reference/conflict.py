"""Conflict-aware merging of one tensor, task by task."""

import numpy as np


def forbidden(deltas, inputs, k, directions, trade_off):
  """Returns what task k forbids the others: orthonormal directions [G, at most c]."""
  width = deltas[0].shape[1]
  conflict = np.zeros((width, width))
  for i, delta in enumerate(deltas):
    if i != k:
      harm, use = inputs[k] @ delta, inputs[i] @ delta
      conflict += harm.T @ harm / len(harm) - trade_off * use.T @ use / len(use)
  values, vectors = np.linalg.eigh(conflict)
  best = sorted(range(width), key=lambda j: -values[j])[:directions]
  return vectors[:, [j for j in best if values[j] > 1e-5 * np.abs(values).max()]]


def project(deltas, inputs, directions, trade_off):
  """Takes out of each task vector [F, G] all that the others forbid, what is alike as one."""
  trimmed = []
  for i, delta in enumerate(deltas):
    basis = np.concatenate([np.zeros((delta.shape[1], 1))] + [
        forbidden(deltas, inputs, k, directions, trade_off) for k in range(len(deltas)) if k != i],
        axis=1)
    trimmed.append(delta - delta @ basis @ np.linalg.pinv(basis, rcond=1e-2))
  return trimmed


def mask(deltas, directions):
  """Sets each task vector to 0 where any other's conflict is among its largest."""
  trimmed = [np.array(delta) for delta in deltas]
  for k in range(len(deltas)):
    conflict = sum((np.ravel(delta)**2 for i, delta in enumerate(deltas) if i != k),
                   np.zeros(deltas[0].size))
    for place in sorted(range(conflict.size), key=lambda j: -conflict[j])[:directions]:
      for i, delta in enumerate(trimmed):
        if i != k:
          np.ravel(delta)[place] = 0
  return trimmed
