"""Learning curves: each kind of metric over rounds, validation and test apart."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report import words
from hmm_jax.report.style import label_ends, logarithmic, look, new, short, styled, whole_numbers

LIMITS = {'accuracy': (0, 1), 'loss': (0, np.inf)}  # what values of a kind can be
DECADES = 50  # A kind whose means span such a factor is drawn on a logarithmic scale.
PANEL = 4.9, 2.7  # inches
# Our choice: nearly the curve of the plain mean; the tables have it.
NOT_DRAWN = 'clients_weighted/'


class Line(NamedTuple):
  """One metric of one run over rounds.

  after: the values after the final merge, [S]; empty if there was none, or it changed none.
  """

  label: str
  rounds: np.ndarray  # [N]
  values: np.ndarray  # [S, N]
  after: np.ndarray

  @property
  def last(self) -> float:
    """The mean over seeds at the end of the curve."""
    return float(self.values[:, -1].mean())

  @property
  def merged(self) -> float:
    """The mean over seeds after the final merge; NaN if there was none."""
    return float(self.after.mean()) if len(self.after) else np.nan


def kinds(rows: Sequence[dict]) -> dict[str, dict[str, list[str]]]:
  """Returns the metrics to draw: {kind: {split: [name]}}, test first.

  Those that some rows lack are left out, and constants, such as the bytes of an AllReduce; that an
  accuracy or a loss stays what it is, is worth seeing.
  """
  found = {}
  for name in rows[0] if rows else ():
    values = [row.get(name, '') for row in rows]
    kind, split, _ = words.metric(name)
    constant = len({row['round'] for row in rows}) > 1 and len(set(values)) == 1
    if not (name in words.BOOKKEEPING or name.startswith(NOT_DRAWN) or '' in values
            or (constant and kind not in LIMITS)):
      found.setdefault(kind, {}).setdefault(split, []).append(name)
  order = [*words.SPLITS, '']
  return {kind: dict(sorted(splits.items(), key=lambda item: order.index(item[0])))
          for kind, splits in sorted(found.items())}


def line(rows: Sequence[dict], name: str, label: str) -> Line:
  """Returns one metric of all seeds; the second row of a round is that after the final merge."""
  seeds = sorted({row['seed'] for row in rows})
  by_seed = [[row for row in rows if row['seed'] == seed] for seed in seeds]
  count = min(map(len, by_seed))
  rounds = np.array([row['round'] for row in by_seed[0][:count]])
  unit = words.unit(name)
  values = np.array([[row[name] / unit for row in own[:count]] for own in by_seed], float)
  values[~np.isfinite(values)] = np.nan  # Which is left out of any line.
  if count < 2 or rounds[-1] != rounds[-2]:
    return Line(label, rounds, values, values[:0, 0])
  changed = not np.array_equal(values[:, -1], values[:, -2], equal_nan=True)
  return Line(label, rounds[:-1], values[:, :-1], values[:, -1] if changed else values[:0, 0])


def of_run(rows: Sequence[dict], names: Sequence[str]) -> list[Line]:
  """Returns metrics of one run; those that are equal are one line."""
  found = {}
  for name in names:
    one = line(rows, name, words.metric(name).of)
    found.setdefault((one.values.tobytes(), one.after.tobytes()), []).append(one)
  return [same[0]._replace(label=' = '.join(one.label for one in same)) for same in found.values()]


def of_runs(runs: Mapping[str, Sequence[dict]], name: str) -> list[Line]:
  """Returns one metric of each run."""
  return [line(rows, name, short(run)) for run, rows in runs.items()]


def learning_curves(rows: Sequence[dict], title: str = '') -> dict[str, Figure]:
  """Draws each kind of metric over rounds: {kind: figure}, a panel per split.

  Args:
    rows: rows of metrics.csv; the last part of a name, such as accuracy, is its kind.
    title: what was run.
  """
  return {kind: panels({split: of_run(rows, names) for split, names in splits.items()},
                       kind, title) for kind, splits in kinds(rows).items()}


@styled
def panels(lines: Mapping[str, Sequence[Line]], kind: str, title: str = '') -> Figure:
  """Draws lines of each split in a panel of its own."""
  every = [one for of_split in lines.values() for one in of_split]
  wide = min(2, len(lines))
  high = -(-len(lines) // wide)
  figure = new(wide * PANEL[0], high * PANEL[1] + (0.35 if title else 0.1), title, caption(every))
  grid = figure.subplots(high, wide, squeeze=False)
  for axes, (split, of_split) in zip(grid.flat, lines.items()):
    _draw(axes, of_split, kind)
    axes.set_title(words.SPLITS.get(split, ''))
  for axes in grid.flat[len(lines):]:
    axes.set_axis_off()
  return figure


def caption(lines: Sequence[Line]) -> str:
  """Says what the bands and the marks are."""
  seeds = max(len(one.values) for one in lines)
  merged = any(len(one.after) for one in lines)
  return words.seeds_drawn(seeds) + ('; ★ after the final merge' if merged else '')


def _draw(axes: Axes, lines: Sequence[Line], kind: str):
  bounds = LIMITS.get(kind, (-np.inf, np.inf))
  marks = []
  for place, one in enumerate(lines):
    _spread(axes, one, bounds, look(place))
    if len(one.after):
      marks += axes.plot(one.rounds[-1], one.merged, '*', color=look(place)['color'],
                         markersize=11, markeredgecolor='white', clip_on=False, zorder=5)
  axes.set(xlabel='round', ylabel=words.kind(kind))
  axes.xaxis.set_major_locator(whole_numbers())
  axes.margins(x=0.02)
  scale(axes, np.concatenate([one.values.mean(axis=0) for one in lines]), bounds)
  for mark in marks:  # A logarithmic scale may not reach down to a merge's 0.
    mark.set_ydata(np.clip(mark.get_ydata(), *axes.get_ylim()))
  label_ends(axes, [
      (one.rounds[-1], one.last, f'{one.label}  {_figures(one, kind)}', look(place)['color'])
      for place, one in enumerate(lines)], 0.7 * PANEL[1])


def scale(axes: Axes, means: np.ndarray, bounds: tuple[float, float]):
  """Chooses a logarithmic scale for means that span decades, else limits within what can be."""
  means = means[np.isfinite(means)]
  if len(means) and means.min() > 0 and means.max() > DECADES * means.min():
    axes.set_yscale('log')
    axes.set_ylim(means.min() / 1.5, means.max() * 1.5)
    logarithmic(axes.yaxis)
    return
  low, high = axes.get_ylim()
  axes.set_ylim(max(low, bounds[0] - 0.02), min(high, bounds[1] + 0.02))


def _spread(axes, one, bounds, look):
  """Draws the mean over seeds; with a band of ± std, or with two seeds as thin lines."""
  mean, std = one.values.mean(axis=0), deviation(one.values)
  if len(one.rounds) == 1:
    bar = np.clip([mean - std, mean + std], *bounds)
    axes.errorbar(one.rounds, mean, np.abs(bar - mean), fmt='o', capsize=3, color=look['color'])
  else:
    axes.plot(one.rounds, mean, **look)
    if len(one.values) == 2:
      axes.plot(one.rounds, one.values.T, linewidth=0.7, alpha=0.6, color=look['color'])
    if len(one.values) > 2:
      axes.fill_between(one.rounds, *np.clip([mean - std, mean + std], *bounds),
                        color=look['color'], alpha=0.18, linewidth=0)


def deviation(values: np.ndarray) -> np.ndarray:
  """Returns the sample standard deviation over seeds, [S, N] -> [N]; 0 for one seed."""
  return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def _figures(one: Line, kind: str) -> str:
  """Writes the last mean, and that after the final merge."""
  short = lambda value: f'{value:.3f}' if kind == 'accuracy' else f'{value:.3g}'
  return short(one.last) + (f' → ★ {short(one.merged)}' if len(one.after) else '')
