"""The updates in an atlas: their coefficients over the rounds, and how late they arrived."""

from collections.abc import Collection, Sequence

from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report import words
from hmm_jax.report.style import COLORS, EMPTY, new, styled, whole_numbers


@styled
def coefficients(anchors: Sequence[dict], corrupted: Collection[int] = (),
                 title: str = '') -> Figure:
  """Draws each client's coefficient over the rounds, for the first seed.

  Args:
    anchors: rows of anchors.csv; a client without an update in the atlas is gray.
    corrupted: corrupted clients, drawn first and with red labels.
    title: what was run.
  """
  own = [row for row in anchors if row['seed'] == anchors[0]['seed']]
  ids = sorted({row['client'] for row in own}, key=lambda i: (i not in corrupted, i))
  place = {client: line for line, client in enumerate(ids)}
  table = np.full((len(ids), max(row['round'] for row in own)), np.nan)
  for row in own:
    table[place[row['client']], row['round'] - 1] = row['coefficient']
  figure = new(7, float(np.clip(0.15 * len(ids), 3, 10)), title,
               f'gray: no update in the atlas; seed {own[0]["seed"]}')
  axes = figure.subplots()
  axes.grid(visible=False)
  most = np.nanmax(np.abs(table)) or 1
  image = axes.imshow(table, aspect='auto', cmap='RdBu_r', interpolation='nearest', vmin=-most,
                      vmax=most, extent=(0.5, table.shape[1] + 0.5, len(ids) - 0.5, -0.5))
  image.set_cmap(image.get_cmap().with_extremes(bad=EMPTY))
  figure.colorbar(image, label="coefficient of the client's update")
  axes.set(xlabel='round', ylabel='client, corrupted ones in red' if corrupted else 'client')
  axes.set_yticks(range(len(ids)), ids, fontsize=min(8, 400 / len(ids)))
  for label, client in zip(axes.get_yticklabels(), ids):
    label.set_color('red' if client in corrupted else 'black')
  if bad := sum(client in corrupted for client in ids):
    axes.axhline(bad - 0.5, color='black', linewidth=0.8)
  axes.xaxis.set_major_locator(whole_numbers())
  return figure


@styled
def staleness(anchors: Sequence[dict], title: str = '') -> Figure:
  """Draws a histogram of the delays of updates, in rounds, over all seeds."""
  delays = [int(row['delay']) for row in anchors if 'delay' in row]
  seeds = len({row['seed'] for row in anchors})
  figure = new(4.8, 2.4, title, f'all updates of {words.counted(seeds, "seed")}')
  axes = figure.subplots()
  axes.bar(*np.unique(delays, return_counts=True), color=COLORS[0], width=0.7)
  axes.set(xlabel='rounds since the model was sent', ylabel='updates')
  axes.grid(visible=False, axis='x')
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(whole_numbers())
  return figure
