"""Pictures of a run: learning curves with their spread, and the partition."""

from collections.abc import Sequence
import os

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np


def partition(counts: np.ndarray, path: str):
  """Draws the training rows of each client by class, counts [K, C], as a heat map."""
  height = float(np.clip(0.2 * len(counts), 3, 12))
  figure = Figure(figsize=(2 + 0.4 * counts.shape[1], height), layout='constrained')
  axes = figure.subplots()
  image = axes.imshow(counts, aspect='auto', cmap='viridis', interpolation='nearest')
  figure.colorbar(image, label='training rows')
  axes.set(xlabel='class', ylabel='client', title=f'{len(counts)} clients')
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(MaxNLocator(integer=True))
  _save(figure, path)


def learning_curves(rows: Sequence[dict], folder: str):
  """Draws each kind of metric over rounds, a line a view: mean and ± std over seeds.

  Args:
    rows: of metrics.csv; the last part of a name, such as accuracy, is its kind.
    folder: gets a picture KIND.png for every kind.
  """
  names = [name for name in rows[0] if '/' in name]
  for kind in sorted({name.rsplit('/', 1)[1] for name in names}):
    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.subplots()
    for name in (n for n in names if n.rsplit('/', 1)[1] == kind):
      rounds, mean, std = _over_seeds(rows, name)
      line, = axes.plot(rounds, mean, label=name)
      axes.fill_between(rounds, mean - std, mean + std, color=line.get_color(), alpha=0.2)
    axes.set(xlabel='round', ylabel=kind)
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    _save(figure, os.path.join(folder, f'{kind}.png'))


def _over_seeds(rows, name):
  rounds = sorted({row['round'] for row in rows})
  values = [np.array([row[name] for row in rows if row['round'] == r]) for r in rounds]
  return rounds, np.array([v.mean() for v in values]), np.array(
      [v.std(ddof=1) if len(v) > 1 else 0.0 for v in values])


def _save(figure, path):
  os.makedirs(os.path.dirname(path), exist_ok=True)
  figure.savefig(path, dpi=120)
