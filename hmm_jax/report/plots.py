"""Plots of a run: learning curves, clients and their weights, partition, landscapes."""

from collections.abc import Collection, Mapping, Sequence
import os
import re

from matplotlib import colormaps
from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report.landscape import Interpolation, Surface
from hmm_jax.report.style import save, whole_numbers

# Columns of metrics.csv that are not measurements.
BOOKKEEPING = ('round', 'seed', 'seconds', 'bytes_up', 'bytes_down')


def of_run(metrics: Sequence[dict], tables: Mapping[str, Sequence[dict]], folder: str):
  """Draws all plots of a run's tables.

  Args:
    metrics: rows of metrics.csv.
    tables: rows of clients.csv, anchors.csv and search.csv by name; empty if there are none.
    folder: folder of the plots.
  """
  learning_curves(metrics, folder)
  client_tables(tables['clients'], folder)
  if anchors := tables['anchors']:
    corrupted = {row['client'] for row in tables['clients'] if row.get('corrupted')}
    coefficients(anchors, os.path.join(folder, 'coefficients.png'), corrupted)
    staleness(anchors, os.path.join(folder, 'staleness.png'))
  if tables['search']:
    searches(tables['search'], os.path.join(folder, 'search.png'))


def partition(counts: np.ndarray, path: str):
  """Draws the training examples of each client by class, counts [K, C], as a heat map."""
  height = float(np.clip(0.2 * len(counts), 3, 12))
  figure = Figure(figsize=(2 + 0.4 * counts.shape[1], height), layout='constrained')
  axes = figure.subplots()
  image = axes.imshow(counts, aspect='auto', cmap='viridis', interpolation='nearest')
  figure.colorbar(image, label='training examples')
  axes.set(xlabel='class', ylabel='client', title=f'{len(counts)} clients')
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(whole_numbers())
  save(figure, path)


def learning_curves(rows: Sequence[dict], folder: str):
  """Draws each kind of metric over rounds, one line per view: mean and ± std over seeds.

  Args:
    rows: rows of metrics.csv; the last part of a name, such as accuracy, is its kind.
    folder: folder of the plots, one KIND.png for every kind.
  """
  for kind, names in kinds(rows).items():
    figure = Figure(figsize=(9, 4), layout='constrained')
    axes = figure.subplots()
    for name in names:
      _band(axes, *_over_seeds(rows, name), label=name)
    axes.set(xlabel='round', ylabel=kind)
    axes.xaxis.set_major_locator(whole_numbers())
    axes.grid(alpha=0.3)
    figure.legend(loc='outside right upper', fontsize='small')
    save(figure, os.path.join(folder, f'{kind}.png'))


def kinds(rows: Sequence[dict]) -> dict[str, list[str]]:
  """Returns the metrics that all rows have by their kind, the last part of their names."""
  found = {}
  for name in rows[0] if rows else ():
    if name not in BOOKKEEPING and all(name in row for row in rows):
      found.setdefault(name.rsplit('/', 1)[-1], []).append(name)
  return dict(sorted(found.items()))


def clients(runs: Mapping[str, Sequence[dict]], path: str):
  """Draws the sorted test accuracies of each run's clients: mean and ± std over seeds.

  Args:
    runs: rows of clients.csv by name of the run; each seed's last evaluation is drawn.
    path: path of the plot.
  """
  figure = Figure(figsize=(6, 4), layout='constrained')
  axes = figure.subplots()
  for name, rows in runs.items():
    last = _last_evaluation(rows)
    sorted_ = np.array([sorted(r['test/accuracy'] for r in last
                               if r['seed'] == seed and 'test/accuracy' in r)
                        for seed in sorted({r['seed'] for r in last})])
    mean = sorted_.mean(axis=0)
    _band(axes, np.arange(1, len(mean) + 1), mean, _std(sorted_),
          label=f'{name}: mean {mean.mean():.3f}')
  low, high = axes.get_ylim()
  axes.set_ylim(max(low, -0.02), min(high, 1.02))  # A band may leave [0, 1].
  axes.set(xlabel='clients, the worst first', ylabel='accuracy on their own test examples')
  axes.xaxis.set_major_locator(whole_numbers())
  axes.grid(alpha=0.3)
  axes.legend(fontsize='small')
  save(figure, path)


def images(kinds: Mapping[str, np.ndarray], path: str, columns: int = 16):
  """Draws images [N, H, W, C] of each kind under its name, with each image's contrast stretched.

  If there are neither one nor three channels, the first channel is drawn.
  """
  heights = [-(-len(x) // columns) for x in kinds.values()]
  figure = Figure(figsize=(columns / 2, (sum(heights) + len(kinds)) / 2), layout='constrained')
  grid = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)
  for axes, (name, stack) in zip(grid[:, 0], kinds.items(), strict=True):
    x = np.asarray(stack) if stack.shape[-1] == 3 else np.asarray(stack)[..., :1]
    low, high = (f(x, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    x = np.pad((x - low) / np.maximum(high - low, 1e-12), [(0, 0), (1, 1), (1, 1), (0, 0)],
               constant_values=1)
    x = np.pad(x, [(0, -len(x) % columns), (0, 0), (0, 0), (0, 0)], constant_values=1)
    rows = x.reshape(-1, columns, *x.shape[1:]).swapaxes(1, 2)
    axes.imshow(rows.reshape(rows.shape[0] * rows.shape[1], -1, x.shape[-1]).squeeze(),
                cmap='gray', vmin=0, vmax=1)
    axes.set_title(name)
    axes.axis('off')
  save(figure, path)


def client_tables(rows: Sequence[dict], folder: str, panels: int = 6):
  """Draws columns NAME/0, NAME/1, ... of clients.csv as heat maps, one panel per evaluation.

  Args:
    rows: rows of clients.csv; the first seed is drawn, with the last row of each round.
    folder: folder of the plots, one NAME.png for every name.
    panels: largest number of evaluations drawn, evenly spaced.
  """
  own = [row for row in rows if row['seed'] == rows[0]['seed']]
  tables = {}
  for column in own[-1] if own else ():
    if found := re.fullmatch(r'(.+)/\d+', column):
      tables.setdefault(found[1], []).append(column)
  for name, columns in tables.items():
    values = {}  # {round: {client: [M]}}; rows of older runs may lack the columns
    for row in own:
      if columns[0] in row:
        values.setdefault(row['round'], {})[row['client']] = [row[c] for c in columns]
    spread = np.linspace(0, len(values) - 1, min(panels, len(values)))
    chosen = [sorted(values)[round(i)] for i in spread]
    pictures = [np.array([values[number][i] for i in sorted(values[number])]) for number in chosen]
    _heat_maps(pictures, [f'round {number}' for number in chosen], name,
               os.path.join(folder, f'{name}.png'))


def coefficients(anchors: Sequence[dict], path: str, corrupted: Collection[int] = ()):
  """Draws each client's coefficient over the rounds, for the first seed.

  Args:
    anchors: rows of anchors.csv; a client without an update in the atlas is white.
    path: path of the plot.
    corrupted: corrupted clients, drawn first and with red labels.
  """
  own = [row for row in anchors if row['seed'] == anchors[0]['seed']]
  ids = sorted({row['client'] for row in own}, key=lambda i: (i not in corrupted, i))
  place = {client: line for line, client in enumerate(ids)}
  table = np.full((len(ids), max(row['round'] for row in own)), np.nan)
  for row in own:
    table[place[row['client']], row['round'] - 1] = row['coefficient']
  figure = Figure(figsize=(9, float(np.clip(0.15 * len(ids), 3, 12))), layout='constrained')
  axes = figure.subplots()
  most = np.nanmax(np.abs(table)) or 1
  image = axes.imshow(table, aspect='auto', cmap='RdBu_r', interpolation='nearest', vmin=-most,
                      vmax=most, extent=(0.5, table.shape[1] + 0.5, len(ids) - 0.5, -0.5))
  figure.colorbar(image, label='coefficient')
  axes.set(xlabel='round', ylabel='client, corrupted ones in red' if corrupted else 'client')
  axes.set_yticks(range(len(ids)), ids, fontsize=min(10, 400 / len(ids)))
  for label, client in zip(axes.get_yticklabels(), ids):
    label.set_color('red' if client in corrupted else 'black')
  axes.xaxis.set_major_locator(whole_numbers())
  save(figure, path)


def staleness(anchors: Sequence[dict], path: str):
  """Draws a histogram of the delays of updates, in rounds, over all seeds."""
  delays = [int(row['delay']) for row in anchors if 'delay' in row]
  figure = Figure(figsize=(5, 3), layout='constrained')
  axes = figure.subplots()
  axes.bar(*np.unique(delays, return_counts=True))
  axes.set(xlabel='rounds since the model was sent', ylabel='updates')
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(whole_numbers())
  save(figure, path)


def searches(rows: Sequence[dict], path: str):
  """Draws the losses along a search, averaged over each third of the rounds and all seeds.

  Args:
    rows: rows of search.csv, with the loss on minibatches and on held-out examples.
    path: path of the plot.
  """
  figure = Figure(figsize=(7, 4), layout='constrained')
  axes = figure.subplots()
  rounds = max(row['round'] for row in rows)
  for third, color in enumerate(colormaps['viridis']([0, 0.45, 0.9])):
    first, last = rounds * third // 3 + 1, rounds * (third + 1) // 3
    some = [row for row in rows if first <= row['round'] <= last]
    if not some:
      continue  # Fewer than three rounds.
    for name, style, what in (('loss', ':', 'minibatches'), ('held_out_loss', '-', 'held out')):
      steps = sorted({row['step'] for row in some if name in row})
      means = [np.mean([row[name] for row in some if row['step'] == step and name in row])
               for step in steps]  # NaN is stored as a missing value.
      axes.plot(steps, means, style, color=color, label=f'{what}, rounds {first} to {last}')
  axes.set(xlabel='step of the search', ylabel="loss on the server's examples", yscale='log')
  axes.grid(alpha=0.3)
  figure.legend(loc='outside right upper', fontsize='small')
  save(figure, path)


def _heat_maps(pictures, titles, label, path):
  """Draws tables [K, M] side by side, with a common color scale."""
  clients, models = pictures[0].shape
  width, height = np.clip([0.25 * models, 0.2 * clients], [1.6, 3], [4, 8])
  figure = Figure(figsize=(1.4 + width * len(pictures), height), layout='constrained')
  axes = figure.subplots(1, len(pictures), sharey=True, squeeze=False)[0]
  shared = {'vmin': np.min(pictures), 'vmax': np.max(pictures)}
  for axis, picture, title in zip(axes, pictures, titles):
    image = axis.imshow(picture, aspect='auto', cmap='viridis', interpolation='nearest', **shared)
    axis.set(title=title, xlabel='model')
    for ticks in (axis.xaxis, axis.yaxis):
      ticks.set_major_locator(whole_numbers())
  axes[0].set(ylabel='client')
  bar = 0.2  # width of the color bar in inches; it is as high as the tables
  share = bar / (width * len(pictures))
  figure.colorbar(image, ax=axes, label=label, aspect=height / bar, fraction=share, pad=share / 2)
  save(figure, path)



def _band(axes, place, mean, std, label):
  """Draws a line with a band of ± std; a point with an error bar if there is only one."""
  if len(mean) == 1:
    axes.errorbar(place, mean, std, fmt='o', capsize=3, label=label)
    return
  line, = axes.plot(place, mean, label=label)
  axes.fill_between(place, mean - std, mean + std, color=line.get_color(), alpha=0.2)


def _last_evaluation(rows):
  """Returns the last row of each seed and client."""
  return {(row['seed'], row['client']): row for row in rows}.values()


def interpolation(lines: Mapping[str, Interpolation], path: str):
  """Draws loss and accuracy along lines between two models, with the barriers in the legend."""
  columns = -(-len(lines) // 18)
  figure = Figure(figsize=(9 + 1.8 * columns, 4), layout='constrained')
  left, right = figure.subplots(1, 2)
  colors = colormaps['viridis'](np.linspace(0, 0.9, len(lines)))
  for (name, line), color in zip(lines.items(), colors):
    left.plot(line.position, line.loss, color=color, label=f'{name}: {line.barrier:.3f}')
    right.plot(line.position, line.accuracy, color=color)
  for axes, kind in ((left, 'loss'), (right, 'accuracy')):
    axes.set(xlabel='position between the two models', ylabel=kind)
    axes.grid(alpha=0.3)
  figure.legend(loc='outside right upper', fontsize='small', title='barrier', ncols=columns)
  save(figure, path)


def landscape(surface: Surface, path: str, names: Sequence[str] | None = None):
  """Draws the loss over a polygon of models as filled contours, with a cross at their mean.

  Args:
    surface: the scores for K models.
    path: path of the plot.
    names: names of the models; None for their positions.
  """
  figure = Figure(figsize=(6, 5), layout='constrained')
  axes = figure.subplots()
  filled = axes.tricontourf(*surface.points.T, surface.loss, levels=20, cmap='viridis')
  figure.colorbar(filled, label='loss')
  axes.plot(*surface.vertices.T, 'o', color='black', clip_on=False)
  axes.plot(0, 0, 'x', color='red', label='mean of these models')
  for name, corner in zip(names or range(len(surface.vertices)), surface.vertices):
    axes.annotate(str(name), 1.2 * corner, ha='center', va='center')
  axes.set(aspect='equal', xlim=(-1.35, 1.35), ylim=(-1.35, 1.35))
  axes.set_axis_off()
  axes.legend(loc='lower right', fontsize='small')
  save(figure, path)


def _over_seeds(rows, name):
  """Returns rounds, means and stds over seeds, one per evaluation; a round may have two."""
  by_seed = [[row for row in rows if row['seed'] == seed] for seed in {r['seed'] for r in rows}]
  values = np.array([[row[name] for row in own] for own in by_seed])
  return [row['round'] for row in by_seed[0]], values.mean(axis=0), _std(values)


def _std(values):
  """Returns the sample standard deviation over seeds, [S, N] -> [N]; 0 for one seed."""
  return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])

