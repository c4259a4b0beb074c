"""Variables drawn by NumPy: a network's own initialization takes long to compile."""

import math

import jax
import numpy as np


def drawn(model, seed=0, *, count=None):
  """Returns variables of which no two entries are alike, or a stack of so many.

  Outputs of a layer are about as large as its inputs; variances and scales are around 1.

  Args:
    model: the network.
    seed: of the draw.
    count: K, for a stack.
  """
  rng = np.random.default_rng(seed)

  def draw(path, x):
    kind = path[-1].key
    shape = x.shape if count is None else (count, *x.shape)
    if kind in ('var', 'scale'):
      return np.float32(rng.uniform(0.5, 1.5, shape))
    width = math.prod(x.shape[:-1]) if kind in ('kernel', 'recurrent') else 3
    return np.float32(rng.uniform(-1, 1, shape) * math.sqrt(3 / width))

  return jax.tree.map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))
