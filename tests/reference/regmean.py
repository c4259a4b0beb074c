"""RegMean of one layer, by an inverse."""

import numpy as np


def gram(x, factor):
  """Returns x^T x a row, with its entries off the diagonal times a factor."""
  out = x.T @ x / len(x)
  for i, j in np.ndindex(out.shape):
    if i != j:
      out[i, j] *= factor
  return out


def layer(kernels, inputs, factor):
  grams = [gram(x, factor) for x in inputs]
  return np.linalg.inv(sum(grams)) @ sum(g @ w for g, w in zip(grams, kernels))


def least_squares(kernels, inputs):
  """Fits one kernel to the outputs of all models on their own inputs."""
  x, y = np.concatenate(inputs), np.concatenate([x @ w for x, w in zip(inputs, kernels)])
  return np.linalg.lstsq(x, y)[0]
