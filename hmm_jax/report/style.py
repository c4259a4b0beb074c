"""The look of all figures: colors, axes, and the files they are saved as."""

import os

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hmm_jax import storage

# Okabe and Ito's colors, which color-blind readers can tell apart, in an order of contrast.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')


def whole_numbers() -> MaxNLocator:
  """Returns ticks at whole numbers only."""
  return MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def save(figure: Figure, path: str):
  """Saves a figure; the kind of file is the ending of its path."""
  folder, name = os.path.split(path)
  with storage.saving(folder):
    os.makedirs(folder, exist_ok=True)
  with storage.replacing(path) as new:
    figure.savefig(new, dpi=120, format=os.path.splitext(name)[1].removeprefix('.'))
