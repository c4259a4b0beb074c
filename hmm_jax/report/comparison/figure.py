"""The figure of a comparison: curves, accuracy against bytes, and the clients of each run."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report import words
from hmm_jax.report.comparison.numbers import Entry, OneSeed, about_spread
from hmm_jax.report.comparison.table import unit
from hmm_jax.report.plots import curves
from hmm_jax.report.plots.lines import Line, changed
from hmm_jax.report.style import arrange, look, new, save, short, styled, whole_numbers

BY = ('round', 'bytes', 'seconds')
BOXES = 4.2  # Inches of the panel of clients, with the names of the runs.
HIGH = 3.4  # inches
_MODELS = {'global': 'of the global model', 'merged': 'of the merged model',
           'locals': 'of the local models, mean',
           'clients': "of the clients' models on their own examples, mean"}


def draw(entries: Sequence[Entry], metric: str, by: str, paths: Sequence[str]):
  """Draws a comparison, and saves it in the formats that the endings of the paths say."""
  figure = drawn(entries, metric, by)
  arrange(figure)
  for path in paths:
    save(figure, path)


@styled
def drawn(entries: Sequence[Entry], metric: str, by: str) -> Figure:
  """Returns the figure of a comparison.

  Args:
    entries: the runs.
    metric: of the curves.
    by: what the first curves are over, one of BY.
  """
  seeds = [seed for entry in entries for seed in entry.seeds.values()]
  sent = by != 'bytes' and any(seed.rows[-1]['bytes'] for seed in seeds)
  kind = words.metric(metric).kind
  panels = [(_places(entries, column), [_line(entry, metric, column, entries) for entry in entries])
            for column in ([by, 'bytes'] if sent else [by])]
  boxes = [BOXES] if any(seed.clients for seed in seeds) else []
  widths = [curves.width(lines, kind) for _, lines in panels] + boxes
  figure = new(sum(widths), HIGH, title(entries, metric), caption(entries, metric))
  axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
  for one in axes[1:len(panels)]:
    one.sharey(axes[0])
  curves.draw([(one, lines) for one, (_, lines) in zip(axes, panels)], kind, HIGH)
  for one, (label, _) in zip(axes, panels):
    one.set_xlabel(label)
    if label == 'round':
      one.xaxis.set_major_locator(whole_numbers())
  if boxes:
    _clients(axes[-1], entries)
  return figure


def title(entries: Sequence[Entry], metric: str) -> str:
  """Says what is compared, and on which data if that is one for all runs."""
  about = {entry.about for entry in entries}
  return ' · '.join(filter(None, [in_words(metric), *(about if len(about) == 1 else ())]))


def in_words(metric: str) -> str:
  """Returns a metric's name in words: 'test accuracy of the global model'."""
  view, _, rest = metric.partition('/')
  split, _, kind = rest.partition('/')
  if view in _MODELS and kind:
    return f'{split} {words.kind(kind)} {_MODELS[view]}'
  return metric


def caption(entries: Sequence[Entry], metric: str) -> str:
  """Says what lines, bands and marks are."""
  by_count = {}
  for entry in entries:
    by_count.setdefault(len(entry.seeds), []).append(entry.name)
  parts = [words.seeds_drawn(count) + (f' ({", ".join(names)})' if len(by_count) > 1 else '')
           for count, names in sorted(by_count.items(), reverse=True)]
  if any(_after_merge(entry, metric) for entry in entries):
    parts.append(curves.MERGED)
  said = ['; '.join(parts) + '.']
  if max(by_count) > 1:
    said.append(about_spread(entries))
  if any(seed.clients for entry in entries for seed in entry.seeds.values()):
    said.append('Boxes: quartiles of the clients; whiskers: 5 to 95 %; points in them: means.')
  return ' '.join(said)


def _line(entry: Entry, metric: str, column: str, entries: Sequence[Entry]) -> Line:
  """Returns a run as a line over a column of its rows, at the rounds that all seeds have."""
  each = [{row['round']: row for row in _before_merge(seed) if metric in row}
          for seed in entry.seeds.values()]
  rounds = sorted(set.intersection(*map(set, each)))
  pick = lambda name: np.array([[rows[number][name] for number in rounds] for rows in each], float)
  size, places = _size(entries, column), pick(column).mean(axis=0)
  values, after, further = pick(metric) / words.unit(metric), np.zeros(0), 0.0
  if merged := _after_merge(entry, metric):
    after = changed(values[:, -1], np.array([row[metric] for row in merged]) / words.unit(metric))
    further = np.mean([row[column] for row in merged]) - places[-1]
  return Line(short(entry.name), places / size, values, after, float(further / size))


def _size(entries: Sequence[Entry], column: str) -> float:
  """Returns what a column is divided by to be in the unit of its axis."""
  return _unit(entries)[0] if column == 'bytes' else 1


def _unit(entries: Sequence[Entry]) -> tuple[float, str]:
  return unit(max(seed.rows[-1]['bytes'] for entry in entries for seed in entry.seeds.values()))


def _places(entries: Sequence[Entry], column: str) -> str:
  """Says what lines are over."""
  return {'round': 'round', 'seconds': 'seconds of training, of one seed',
          'bytes': f'{_unit(entries)[1]} sent by clients and server, of one seed'}[column]


def _before_merge(seed: OneSeed):
  return seed.rows[:-1] if seed.finished else seed.rows


def _after_merge(entry: Entry, metric: str) -> list:
  """Returns each seed's row after a final merge; none unless all have one with the metric."""
  rows = [seed.rows[-1] for seed in entry.seeds.values() if seed.finished]
  return rows if len(rows) == len(entry.seeds) and all(metric in row for row in rows) else []


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
  axes.set_yticks([-place for place in range(len(held))], [short(entry.name) for entry, _ in held])
  axes.set(xlabel="clients' own test accuracies", xlim=(-0.02, 1.02))
  axes.grid(visible=False, axis='y')
