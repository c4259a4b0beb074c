"""The losses along a search for coefficients, early and late in a run."""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report import words
from hmm_jax.report.plots.curves import scale
from hmm_jax.report.style import label_ends, new, styled

HEIGHT = 2.6  # inches


@styled
def searches(rows: Sequence[dict], title: str = '') -> Figure:
  """Draws the losses along a search, averaged over each third of the rounds and all seeds.

  Args:
    rows: rows of search.csv, with the loss on minibatches and on held-out examples.
    title: what was run.
  """
  seeds, rounds = len({row['seed'] for row in rows}), max(row['round'] for row in rows)
  figure = new(4.9, HEIGHT, title,
               'solid: held-out examples; dotted: minibatches that the search learns from; means '
               f'over the rounds and {words.counted(seeds, "seed")}')
  axes = figure.subplots()
  ends, drawn = [], []
  for third, color in enumerate(colormaps['viridis']([0, 0.45, 0.8])):
    first, last = rounds * third // 3 + 1, rounds * (third + 1) // 3
    some = [row for row in rows if first <= row['round'] <= last]
    if not some:
      continue  # Fewer than three rounds.
    when = f'rounds {first} to {last}' if last > first else f'round {first}'
    for name, dashes, what in (('loss', ':', 'minibatches'), ('held_out_loss', '-', 'held out')):
      steps, means = mean_losses(some, name)
      axes.plot(steps, means, dashes, color=color, label=f'{what}, {when}')
      drawn += means
      if steps and name == 'held_out_loss':
        ends.append((steps[-1], means[-1], when, color))
  scale(axes, np.array(drawn), (0, np.inf))
  axes.set(xlabel='step of the search', ylabel="loss on the server's examples")
  axes.margins(x=0.02)
  label_ends(axes, ends, 0.85 * HEIGHT)
  return figure


def mean_losses(rows: Sequence[dict], name: str) -> tuple[list[int], list[float]]:
  """Returns the steps with a number, and the mean at each; NaN is stored as a missing value."""
  steps = sorted({row['step'] for row in rows if name in row})
  return steps, [float(np.mean([row[name] for row in rows if row['step'] == step and name in row]))
                 for step in steps]
