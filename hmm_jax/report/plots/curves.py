"""Learning curves: each kind of metric over rounds, validation and test apart."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report import words
from hmm_jax.report.plots.lines import Line, deviation, kinds, of_run
from hmm_jax.report.style import (
    CAPTION,
    inches,
    label_ends,
    logarithmic,
    look,
    new,
    styled,
    whole_numbers,
)

# What values of a kind can be.
LIMITS = dict.fromkeys(
    ('accuracy', 'fallback', 'f1_micro', 'f1_macro', 'label_accuracy', 'exact_match',
     'token_accuracy', 'balanced_accuracy', 'auroc', 'average_precision', 'calibration_error'),
    (0, 1)) | dict.fromkeys(
    ('loss', 'rmse', 'mae', 'median_absolute_error', 'perplexity', 'server_loss', 'bytes',
     'consensus', 'contraction', 'share_of_allreduce'), (0, np.inf))
DECADES = 50  # A kind whose means span such a factor is drawn on a logarithmic scale.
DOTS = 12  # As many evaluations are marked, so that nobody takes a line for a measurement.
MERGED = '★ after the final merge'
NOTHING = 1e-6  # of a line's largest value is what rounding leaves of 0
# Of a panel without the labels at its lines' ends, and of one with a single evaluation; in inches.
WIDE, NARROW, HIGH = 3.3, 1.8, 2.6


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
  """Draws lines of each split in a panel of its own; those side by side have one scale."""
  every = [one for of_split in lines.values() for one in of_split]
  wide = min(2, len(lines))
  high = -(-len(lines) // wide)
  figure = new(wide * width(every, kind), high * HIGH, title, caption(every))
  grid = figure.subplots(high, wide, squeeze=False, sharey='row')
  splits = list(lines.items())
  for place, row in enumerate(grid):
    shown = splits[place * wide:(place + 1) * wide]
    draw([(axes, of_split) for axes, (_, of_split) in zip(row, shown)], kind, HIGH)
    for axes, (split, _) in zip(row, shown):
      axes.set(xlabel='round', title=words.SPLITS.get(split, ''))
      axes.xaxis.set_major_locator(whole_numbers())
    for axes in row[len(shown):]:
      axes.set_axis_off()
  return figure


def width(lines: Sequence[Line], kind: str) -> float:
  """Returns how wide a panel with labels at the ends of its lines is, in inches."""
  single = all(len(one.rounds) == 1 for one in lines)
  return (NARROW if single else WIDE) + max(inches(_label(one, kind), CAPTION) for one in lines)


def caption(lines: Sequence[Line]) -> str:
  """Says what the bands and the marks are."""
  seeds = max(len(one.values) for one in lines)
  merged = any(len(one.after) for one in lines)
  return words.seeds_drawn(seeds) + (f'; {MERGED}' if merged else '')


def draw(panels: Sequence[tuple[Axes, Sequence[Line]]], kind: str, height: float):
  """Draws lines with their bands, marks and labels into panels that share their y axis.

  Args:
    panels: axes, and what to draw into them.
    kind: of the metrics.
    height: of a panel in inches, with what is below it.
  """
  bounds = LIMITS.get(kind, (-np.inf, np.inf))
  marks = [mark for axes, lines in panels for mark in _lines(axes, lines, bounds)]
  means = np.concatenate([one.values.mean(axis=0) for _, lines in panels for one in lines])
  for axes, _ in panels:
    axes.set_ylabel(words.kind(kind))
    axes.tick_params(labelleft=True)
    axes.margins(x=0.02)
    scale(axes, means, bounds)
  for mark in marks:  # A logarithmic scale may not reach down to a merge's 0.
    mark.set_ydata(np.clip(mark.get_ydata(), *mark.axes.get_ylim()))
  for axes, lines in panels:
    label_ends(axes, [(one.rounds[-1], one.last, _label(one, kind), look(place)['color'])
                      for place, one in enumerate(lines)], 0.75 * height)


def _lines(axes: Axes, lines: Sequence[Line], bounds: tuple[float, float]) -> list:
  """Draws lines; returns the marks of their final merges."""
  marks = []
  for place, one in enumerate(lines):
    _spread(axes, one, bounds, look(place))
    if len(one.after):
      marks += axes.plot(one.rounds[-1] + one.further, one.merged, '*', markersize=11, zorder=5,
                         color=look(place)['color'], markeredgecolor='white', clip_on=False)
  return marks


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
  dots = 'o' if len(one.rounds) <= DOTS else ''
  low_high = np.clip([mean - std, mean + std], *bounds)
  axes.plot(one.rounds, mean, **look, marker=dots, markersize=4 if len(one.rounds) > 1 else 6)
  if len(one.values) == 2:
    axes.plot(one.rounds, one.values.T, linewidth=0.7, alpha=0.6, color=look['color'],
              marker=dots, markersize=2.5)
  elif len(one.values) > 2 and len(one.rounds) == 1:
    axes.errorbar(one.rounds, mean, np.abs(low_high - mean), capsize=3, color=look['color'])
  elif len(one.values) > 2:
    axes.fill_between(one.rounds, *low_high, color=look['color'], alpha=0.18, linewidth=0)


def _label(one: Line, kind: str) -> str:
  """Writes what a line is, its last mean, and that after the final merge."""
  most = np.nanmax(np.abs(one.values), initial=0)

  def figures(value):
    if 0 < abs(value) < NOTHING * most:
      return '≈ 0'
    return f'{value:.3f}' if kind == 'accuracy' else f'{value:#.3g}'.rstrip('.')

  merged = [f'→ ★ {figures(one.merged)}'] if len(one.after) else []
  return '  '.join(filter(None, [one.label, ' '.join([figures(one.last), *merged])]))
