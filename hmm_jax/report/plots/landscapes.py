"""Loss landscapes between models: along lines, and over a polygon."""

from collections.abc import Mapping, Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report.landscape import Interpolation, Surface
from hmm_jax.report.style import label_ends, new, styled

NAMED = 12  # More lines than that are no longer told apart by a label each.
HEIGHT = 3.0  # inches


@styled
def interpolation(lines: Mapping[str, Interpolation], title: str = '') -> Figure:
  """Draws loss and accuracy along lines between two models, colored by the barrier of the loss."""
  barriers = np.array([line.barrier for line in lines.values()])
  figure = new(9, HEIGHT, title,
               f'barrier of the loss: mean {barriers.mean():.3f}, largest {barriers.max():.3f}; '
               'the darker a line, the lower its barrier')
  left, right = figure.subplots(1, 2)
  shades = colormaps['viridis'](_share(barriers) * 0.85)
  for line, color in zip(lines.values(), shades):
    left.plot(line.position, line.loss, color=color)
    right.plot(line.position, line.accuracy, color=color)
  for axes, kind in ((left, 'loss'), (right, 'accuracy')):
    axes.set(xlabel='position between the two models', ylabel=kind)
    axes.margins(x=0)
  label_ends(right, [(line.position[-1], line.accuracy[-1], f'{name}: {line.barrier:.3f}', color)
                     for (name, line), color in _labeled(lines, shades)], 0.8 * HEIGHT)
  return figure


def _labeled(lines, shades):
  """Returns the lines to name: all, or of many those with the largest barriers."""
  some = sorted(zip(lines.items(), shades), key=lambda item: -item[0][1].barrier)
  return some[:NAMED]


def _share(values: np.ndarray) -> np.ndarray:
  """Maps values to 0 ... 1, from the least to the largest."""
  return (values - values.min()) / (np.ptp(values) or 1)


@styled
def landscape(surface: Surface, names: Sequence[str] | None = None, title: str = '') -> Figure:
  """Draws the loss over a polygon of models as filled contours, with a cross at their mean.

  Args:
    surface: the scores for K models.
    names: names of the models; None for their positions.
    title: what was run.
  """
  figure = new(6, 5, title, '● the models; ✕ their mean')
  axes = figure.subplots()
  filled = axes.tricontourf(*surface.points.T, surface.loss, levels=20)
  figure.colorbar(filled, label='loss')
  axes.plot(*surface.vertices.T, 'o', color='black', clip_on=False)
  axes.plot(0, 0, 'X', color='white', markeredgecolor='black', markersize=9)
  for name, corner in zip(names or range(len(surface.vertices)), surface.vertices):
    axes.annotate(str(name), 1.2 * corner, ha='center', va='center')
  axes.set(aspect='equal', xlim=(-1.35, 1.35), ylim=(-1.35, 1.35))
  axes.set_axis_off()
  return figure
