"""The figure of a comparison: curves, accuracy against bytes, and the clients of each run."""

from collections.abc import Callable, Sequence
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report.comparison.numbers import Entry, OneSeed, about_spread
from hmm_jax.report.comparison.table import unit
from hmm_jax.report.style import arrange, look, save, styled, whole_numbers

BAND = 3  # Seeds that a band needs: the std of two is hardly known, so each is a line (our choice).
BY = {'round': 'round', 'bytes': 'bytes', 'seconds': 'seconds'}  # Column of rows by axis.
_MODELS = {'global': 'of the global model', 'merged': 'of the merged model',
           'locals': 'of the local models, mean',
           'clients': "of the clients' models on their own examples, mean"}


@styled
def draw(entries: Sequence[Entry], metric: str, by: str, paths: Sequence[str]):
  """Draws a comparison.

  Args:
    entries: the runs.
    metric: of the curves.
    by: what the first curves are over, a key of BY.
    paths: of the same figure; their endings say in which format.
  """
  panels: list[Callable] = [lambda axes: _curves(axes, entries, metric, by)]
  if by != 'bytes' and any(seed.rows[-1]['bytes'] for e in entries for seed in e.seeds.values()):
    panels.append(lambda axes: _curves(axes, entries, metric, 'bytes'))
  if any(seed.clients for entry in entries for seed in entry.seeds.values()):
    panels.append(lambda axes: _clients(axes, entries))
  columns = min(4, len(entries))
  lines = -(-len(entries) // columns)
  figure = Figure(figsize=(4.8 * len(panels), 4.2 + 0.2 * lines), layout='constrained')
  for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
    panel(axes)
  figure.suptitle(in_words(metric))
  handles = [Axes.plot(figure.axes[0], [], [], **look(place), label=entry.name)[0]
             for place, entry in enumerate(entries)]
  figure.legend(
      handles=handles, loc='outside lower center', ncols=columns, fontsize='small', frameon=False,
      title=textwrap.fill(caption(entries, metric), 60 * len(panels)), title_fontsize='small')
  arrange(figure)
  for path in paths:
    save(figure, path)


def in_words(metric: str) -> str:
  """Returns a metric's name in words: 'test accuracy of the global model'."""
  view, _, rest = metric.partition('/')
  split, _, kind = rest.partition('/')
  if view in _MODELS and kind:
    return f'{split} {kind} {_MODELS[view]}'
  return metric


def caption(entries: Sequence[Entry], metric: str) -> str:
  """Says what lines, bands and marks are."""
  few = [entry for entry in entries if len(entry.seeds) < BAND]
  seeds = lambda some: ', '.join(f'{entry.name} {len(entry.seeds)}' for entry in some)
  parts = []
  if many := [entry for entry in entries if entry not in few]:
    parts.append(f'Lines and bands: mean ± std over seeds ({seeds(many)}).')
  if few:
    parts.append(f'Thin lines: single seeds ({seeds(few)}).')
  if any(len(entry.seeds) > 1 for entry in entries):
    parts.append(about_spread(entries))
  if any(_after_merge(entry, metric) for entry in entries):
    parts.append('Diamonds: after the final merge.')
  return ' '.join(parts)


def _curves(axes: Axes, entries, metric, by):
  """Draws a metric over rounds, bytes or seconds."""
  most = max(seed.rows[-1][BY[by]] for entry in entries for seed in entry.seeds.values())
  size, name = unit(most) if by == 'bytes' else (1, '')
  for number, entry in enumerate(entries):
    line = look(number)
    x, values = _over_rounds(entry, metric, BY[by])
    if len(entry.seeds) >= BAND:
      mean, std = values.mean(axis=0), values.std(axis=0, ddof=1)
      low, high = np.array([mean - std, mean + std])
      if metric.endswith('accuracy'):
        low, high = np.clip([low, high], 0, 1)
      axes.plot(x.mean(axis=0) / size, mean, **line, marker=_dot(x))
      axes.fill_between(x.mean(axis=0) / size, low, high, color=line['color'], alpha=0.2,
                        linewidth=0)
    else:
      axes.plot(x.T / size, values.T, **line, linewidth=0.9, marker=_dot(x))
    for place, value in _after_merge(entry, metric, BY[by]):
      axes.plot(place / size, value, 'D', color=line['color'], markerfacecolor='none')
  axes.set(xlabel={'round': 'round', 'bytes': f'{name} sent by clients and server, of one seed',
                   'seconds': 'seconds of training, of one seed'}[by], ylabel=metric.split('/')[-1])
  if by == 'round':
    axes.xaxis.set_major_locator(whole_numbers())
  axes.set_xlim(left=0)


def _dot(x):
  """Returns the marker of a line: a single evaluation would not be seen."""
  return 'o' if x.shape[1] == 1 else ''


def _over_rounds(entry: Entry, metric: str, column: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns places and values [S, rounds], at the rounds that all seeds have evaluated."""
  each = [{row['round']: row for row in _before_merge(seed) if metric in row}
          for seed in entry.seeds.values()]
  rounds = sorted(set.intersection(*map(set, each)))
  pick = lambda name: np.array([[rows[number][name] for number in rounds] for rows in each],
                               np.float64)
  return pick(column), pick(metric)


def _before_merge(seed: OneSeed):
  return seed.rows[:-1] if seed.finished else seed.rows


def _after_merge(entry: Entry, metric: str, column: str = 'round') -> list[tuple[float, float]]:
  """Returns where the mean after a final merge is drawn: a place and a value, or nothing."""
  rows = [seed.rows[-1] for seed in entry.seeds.values() if seed.finished]
  if not rows or not all(metric in row for row in rows):
    return []
  place, value = (float(np.mean([row[name] for row in rows])) for name in (column, metric))
  return [(place, value)]


def _clients(axes: Axes, entries):
  """Draws how the accuracies of each run's clients are distributed."""
  held = [(entry, look(number)) for number, entry in enumerate(entries)
          if any(seed.clients for seed in entry.seeds.values())]
  for place, (entry, line) in enumerate(held):
    values = [value for seed in entry.seeds.values() for value in seed.clients]
    color = line['color']
    axes.boxplot(values, positions=[-place], orientation='horizontal', widths=0.6, whis=(5, 95),
                 showmeans=True, boxprops=line, whiskerprops=line, capprops={'color': color},
                 medianprops=line, flierprops={'marker': '.', 'markeredgecolor': color},
                 meanprops={'marker': 'o', 'markerfacecolor': color, 'markeredgecolor': color})
  axes.set_yticks([-place for place in range(len(held))], [entry.name for entry, _ in held])
  axes.set(xlabel="clients' test accuracy on their own examples\n"
                  'box: quartiles; whiskers: 5 to 95 %; point: mean', xlim=(-0.02, 1.02))
  axes.grid(visible=False, axis='y')
