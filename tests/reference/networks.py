"""Networks of every kind of inputs, with made-up data."""

import numpy as np
from reference.configs import tiny

from hmm_jax.types import Dataset

CLASSES = 3
KINDS = {
    'images': lambda rng, n: rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
    'tokens': lambda rng, n: rng.integers(0, 7, (n, 5), np.int32),
    'vectors': lambda rng, n: rng.normal(2, 3, (n, 6)).astype(np.float32),
    'modalities': lambda rng, n: {
        'image': rng.integers(0, 256, (n, 8, 8, 3), np.uint8),
        'text': rng.normal(2, 3, (n, 6)).astype(np.float32)}}


def of(name, changes, kind):
  """Returns the config and made-up data of a network."""
  rng = np.random.default_rng(0)
  x, x_test = KINDS[kind](rng, 60), KINDS[kind](rng, 5)
  y = np.arange(60, dtype=np.int32) % CLASSES
  data = Dataset('mine', x, y, x_test, y[:5], CLASSES, titles=('cat', 'dog', 'owl'))
  return tiny(model=name, **changes), data
