"""Models that are flat dicts of arrays, as the twins of merges without data take them."""

import jax
import numpy as np
from reference import toys

from hmm_jax import tree

SHAPES = {'bias': (5,), 'conv': (2, 2, 3, 4), 'scalar': (), 'wide': (3, 7)}


def drawn(count, *, seed=0, spread=1.0, grain=None):
  """Returns models around their base, and it.

  Args:
    count: of models.
    seed: of everything.
    spread: of the models around their base.
    grain: if given, task vectors are integers up to it, so that many entries are equally large.
  """
  rng = np.random.default_rng(seed)
  base = {name: np.float32(rng.normal(size=shape)) for name, shape in SHAPES.items()}
  if grain:
    base = {name: np.float32(np.round(x)) for name, x in base.items()}
  noise = lambda shape: (rng.integers(-grain, grain + 1, shape) if grain
                         else spread * rng.normal(size=shape))
  return [{name: np.float32(x + noise(x.shape)) for name, x in base.items()}
          for _ in range(count)], base


def merger(*merges):
  """Returns what each of several merges gives, by one program: (models, base) -> list."""
  run = toys.jit(lambda stacked, base: [merge(stacked, base, toys.key(0)) for merge in merges])
  return lambda models, base: run(stack(models), base)


def stack(models):
  return tree.stack([jax.tree.map(np.asarray, model) for model in models])


def subtract(models, base):
  """Returns the task vectors, in the models' own precision."""
  return [{name: model[name] - base[name] for name in base} for model in models]
