"""Values of clients, such as the weights of the shared models, at several evaluations."""

from collections.abc import Sequence
import re

from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report import words
from hmm_jax.report.style import new, styled, whole_numbers


def client_tables(rows: Sequence[dict], title: str = '', panels: int = 6) -> dict[str, Figure]:
  """Draws columns NAME/0, NAME/1, ... of clients.csv as heat maps, one panel per evaluation.

  Args:
    rows: rows of clients.csv; the first seed is drawn, with the last row of each round.
    title: what was run.
    panels: largest number of evaluations drawn, evenly spaced.

  Returns:
    {NAME: figure}.
  """
  own = [row for row in rows if row['seed'] == rows[0]['seed']]
  tables = {}
  for column in own[-1] if own else ():
    if found := re.fullmatch(r'(.+)/\d+', column):
      tables.setdefault(found[1], []).append(column)
  return {name: _figure(own, name, columns, title, panels) for name, columns in tables.items()}


def _figure(rows, name, columns, title, panels):
  values = {}  # {round: {client: [M]}}; rows of older runs may lack the columns
  for row in rows:
    if columns[0] in row:
      values.setdefault(row['round'], {})[row['client']] = [row[c] for c in columns]
  most = max(map(len, values.values()))
  whole = [number for number in sorted(values) if len(values[number]) == most]
  spread = np.linspace(0, len(whole) - 1, min(panels, len(whole)))
  chosen = [whole[round(i)] for i in spread]
  pictures = [np.array([values[number][i] for i in sorted(values[number])]) for number in chosen]
  return _heat_maps(pictures, [f'round {number}' for number in chosen], words.spoken(name), title,
                    f'one row per client, one column per model; seed {rows[0]["seed"]}')


@styled
def _heat_maps(pictures, titles, label, title, caption):
  """Draws tables [K, M] side by side, with a common color scale."""
  clients, models = pictures[0].shape
  width, height = np.clip([0.25 * models, 0.2 * clients], [1.6, 3], [4, 8])
  figure = new(max(1.4 + width * len(pictures), 3.6), height, title, caption)
  axes = figure.subplots(1, len(pictures), sharey=True, squeeze=False)[0]
  shared = {'vmin': np.min(pictures), 'vmax': np.max(pictures)}
  for axis, picture, heading in zip(axes, pictures, titles):
    axis.grid(visible=False)
    image = axis.imshow(picture, aspect='auto', interpolation='nearest', **shared)
    axis.set(title=heading, xlabel='model')
    for ticks in (axis.xaxis, axis.yaxis):
      ticks.set_major_locator(whole_numbers())
  axes[0].set(ylabel='client')
  bar = 0.2  # width of the color bar in inches; it is as high as the tables
  share = bar / (width * len(pictures))
  figure.colorbar(image, ax=axes, label=label, aspect=height / bar, fraction=share, pad=share / 2)
  return figure
