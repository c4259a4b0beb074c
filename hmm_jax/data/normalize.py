"""Normalization of stored inputs to the floats that a network takes."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from hmm_jax.types import Array

# Mean and standard deviation of the training pixels in 0..1, by TFDS name.
_PUBLISHED = {
    'mnist': ([0.1307], [0.3081]),
    'fashion_mnist': ([0.2860], [0.3530]),
    'cifar10': ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    'cifar100': ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
}
_CHUNK = 256  # examples in float64 at a time
_CONSTANT = 1e-6


def constants(name: str, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean and standard deviation of the last axis of `x`.

  Args:
    name: of the data set; published constants are used where they are known.
    x: [D, ..., F], uint8 images (taken as 0..1), float32, or int32 tokens.
    rows: indices of the training examples, from which other constants are computed.

  Returns:
    Two float32 arrays [F]. The deviation of a constant feature is 1: it is only centered.
  """
  if name in _PUBLISHED:
    mean, std = _PUBLISHED[name]
  elif is_tokens(x):
    mean, std = np.zeros(x.shape[-1:]), np.ones(x.shape[-1:])
  else:
    mean = _average(lambda chunk: chunk, x, rows)
    std = np.sqrt(_average(lambda chunk: np.square(chunk - mean), x, rows))
    std = np.where(std > _CONSTANT, std, 1)
  return np.asarray(mean, np.float32), np.asarray(std, np.float32)


def normalizer(mean: np.ndarray, std: np.ndarray) -> Callable[[Array], Array]:
  """Returns fn(x [..., F]) -> float32 that scales uint8 to 0..1 and standardizes; jittable.

  int32 tokens pass unchanged.
  """

  def normalize(x):
    if is_tokens(x):
      return x
    unit = 255 if x.dtype == jnp.uint8 else 1
    center, scale = (np.reshape(c, (1,) * (x.ndim - 1) + (-1,))
                     for c in (unit * mean, 1 / (unit * std)))
    return (x.astype(jnp.float32) - center) * scale

  return normalize


def is_tokens(x: Array) -> bool:
  """Returns whether x holds tokens: integers other than uint8, which are not normalized."""
  return np.issubdtype(x.dtype, np.integer) and x.dtype != np.uint8


def _average(fn, x, rows):
  """Averages fn(x) over examples and all axes but the last, in float64, chunk by chunk."""
  unit = 255 if x.dtype == np.uint8 else 1
  total = np.zeros(x.shape[1:])
  for first in range(0, len(rows), _CHUNK):
    chunk = x[rows[first:first + _CHUNK]] / np.float64(unit)
    total += fn(chunk).sum(axis=0)
  return (total / len(rows)).reshape(-1, x.shape[-1]).mean(axis=0)
