"""The partition: who holds how many training examples of which class."""

from collections.abc import Sequence

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report.style import EMPTY, logarithmic, new, short, styled, whole_numbers

_NAMED = 40  # clients whose names can be read
DECADES = 20  # Counts that span such a factor have colors on a logarithmic scale.


@styled
def partition(counts: np.ndarray, title: str = '', names: Sequence[str] = (),
              classes: Sequence[str] = (), groups: str = 'class') -> Figure:
  """Draws the training examples of each client by class, counts [K, C], as a heat map.

  Cells without an example are gray. Few clients and classes bear their names, if they have any.
  `groups` is what the C are, if not classes.
  """
  counts = np.ma.masked_equal(np.asarray(counts), 0)
  wide, high = np.clip([0.16 * counts.shape[0] + 1.6, 0.2 * counts.shape[1] + 1.2], 2, [9, 8])
  figure = new(max(wide, 4.8), high, title, 'gray: no example')
  axes = figure.subplots()
  axes.grid(visible=False)
  decades = counts.count() and counts.max() > DECADES * counts.min()
  scale = LogNorm(counts.min(), counts.max()) if decades else None
  image = axes.imshow(counts.T, aspect='auto', interpolation='nearest', norm=scale)
  image.set_cmap(image.get_cmap().with_extremes(bad=EMPTY))
  bar = figure.colorbar(image, label='training examples')
  if decades:
    logarithmic(bar.ax.yaxis)
  axes.set(xlabel='client', ylabel=groups)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(whole_numbers())
  if 0 < len(names) <= _NAMED:
    axes.set_xticks(range(len(names)), [short(name) for name in names], rotation=90)
  if len(classes) == counts.shape[1] <= _NAMED:
    axes.set_yticks(range(len(classes)), [short(name) for name in classes])
  return figure
