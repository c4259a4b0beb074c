"""The look of all figures: colors, headings, labels at line ends, and the files they become."""

from collections.abc import Callable, Sequence
import functools
import os
import textwrap
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
import numpy as np
from scipy.optimize import isotonic_regression

from hmm_jax.data import storage

# Okabe and Ito's colors, which color-blind readers can tell apart, in an order of contrast.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DASHES = ('-', '--', ':', '-.')  # of the lines beyond the colors
FAINT = '#707070'  # what explains a figure
TITLE, CAPTION = 11, 8  # sizes of letters; labels at lines' ends are like captions
LABEL = 32  # characters of a name beside a line's end
EMPTY = '#80808030'  # cells of a heat map without a value; on any background

STYLE: dict[Any, Any] = {
    'font.size': 9, 'axes.titlesize': 9, 'axes.titlelocation': 'left',
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.3,
    'image.cmap': 'viridis', 'lines.linewidth': 1.6,
    'text.parse_math': False,  # A run may have a name with dollars.
    'pdf.fonttype': 42,  # Outlines that publishers take.
    'svg.fonttype': 'none', 'svg.hashsalt': 'hmm_jax',
}

_LINE = 0.17  # inches from a label to the next
_LINES = 1.5  # from a line of a title or a caption to the next, in sizes of its letters
Arguments = ParamSpec('Arguments')
Result = TypeVar('Result')


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
  """Lets a function draw in this style, whatever the settings of matplotlib are."""
  @functools.wraps(draw)
  def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    with matplotlib.rc_context(STYLE):
      return draw(*args, **kwargs)
  return wrapped


def new(width: float, height: float, title: str = '', caption: str = '') -> Figure:
  """Returns an empty figure under its title and above what explains it.

  Args:
    width: in inches.
    height: of what is between title and caption, which come on top of it.
    title: what was run; it is wrapped, and cut after three lines.
    caption: what is drawn: bands, marks, how many seeds.
  """
  title, caption = _wrapped(title, TITLE, width), _wrapped(caption, CAPTION, width)
  points = _LINES * (TITLE * len(title.splitlines()) + CAPTION * len(caption.splitlines()))
  figure = Figure(figsize=(width, height + points / 72), layout='constrained')
  if title:
    figure.suptitle(title, x=0.01, ha='left', fontsize=TITLE)
  if caption:
    figure.supxlabel(caption, x=0.01, ha='left', fontsize=CAPTION, color=FAINT)
  return figure


def _wrapped(text: str, size: float, width: float) -> str:
  """Breaks a text into at most three lines that fit into a width in inches."""
  if not text:
    return ''
  letters = int(len(text) * width / inches(text, size)) + 1  # Of the average width.
  while True:
    filled = textwrap.fill(text, letters, max_lines=3, placeholder=' …')
    if letters < 9 or max(inches(line, size) for line in filled.splitlines()) < 0.97 * width:
      return filled
    letters -= 1


def inches(text: str, size: float) -> float:
  """Returns how wide a line of text is, in letters of so many points."""
  points, *_ = text_to_path.get_text_width_height_descent(
      text, FontProperties(size=size), ismath=False)
  return points / 72


def look(place: int) -> dict:
  """Returns the color and the dashes of a line, by its place in a figure, from 0."""
  return {'color': COLORS[place % len(COLORS)],
          'linestyle': DASHES[place // len(COLORS) % len(DASHES)]}


def whole_numbers() -> MaxNLocator:
  """Returns ticks at whole numbers only."""
  return MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def short(name: str) -> str:
  """Returns a name that fits beside a line's end."""
  return name if len(name) <= LABEL else f'{name[:LABEL - 1]}…'


def logarithmic(axis: Axis):
  """Puts plain numbers at the ticks of a logarithmic axis, few where it spans many decades."""
  low, high = sorted(axis.get_view_interval())
  axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 1e3 * low else (1.0,)))
  axis.set_major_formatter(FuncFormatter(plain))
  axis.set_minor_locator(NullLocator())


def plain(value: float, _: object = None) -> str:
  """Writes a number of an axis; the ticks of a logarithmic one are formulas otherwise."""
  return f'{value:,.0f}' if value >= 1000 else f'{value:g}'


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], height: float):
  """Writes a label right of each line's end, moved apart where they would overlap.

  Args:
    axes: whose limits and scales are final.
    ends: x, y, label and color of each end; one that is no finite number is left out.
    height: about how high the axes are, in inches.
  """
  ends = [end for end in ends if np.isfinite(end[1])]
  to_axes = axes.transScale + axes.transLimits
  wanted = [float(np.clip(to_axes.transform((x, y))[1], 0, 1)) for x, y, *_ in ends]
  for (x, y, text, color), place in zip(ends, apart(wanted, _LINE / height)):
    axes.annotate(
        text, (x, y), (1.04, place), textcoords='axes fraction', va='center', fontsize=CAPTION,
        annotation_clip=False, arrowprops={
            'arrowstyle': '-', 'color': color, 'linewidth': 0.8, 'linestyle': ':', 'shrinkA': 0,
            'shrinkB': 2, 'relpos': (0, 0.5)})


def apart(wanted: Sequence[float], gap: float) -> list[float]:
  """Moves places as little as possible, until any two differ by a gap; order is kept.

  They stay between 0 and 1, unless there are too many.
  """
  order = np.argsort(wanted, kind='stable')
  steps = gap * np.arange(len(wanted))
  places = np.empty(len(wanted))
  if len(wanted):
    moved = isotonic_regression(np.array(wanted)[order] - steps).x
    places[order] = np.clip(moved, 0, max(0, 1 - steps[-1])) + steps
  return places.tolist()


@styled
def arrange(figure: Figure):
  """Lays a figure out once for all, which takes longer than to save it."""
  if engine := figure.get_layout_engine():
    engine.execute(figure)
  figure.set_layout_engine(None)


@styled
def save(figure: Figure, path: str):
  """Saves a figure; the kind of file is the ending of its path.

  The same figure gives the same file, so nothing says when it was drawn.
  """
  folder, name = os.path.split(path)
  kind = os.path.splitext(name)[1].removeprefix('.')
  with storage.saving(folder):
    os.makedirs(folder, exist_ok=True)
  undated = {'pdf': {'CreationDate': None}, 'svg': {'Date': None}}.get(kind)
  with storage.replacing(path) as new:
    figure.savefig(new, dpi=150, format=kind, metadata=undated)


def save_pair(figure: Figure, stem: str):
  """Saves a figure as STEM.png, to look at, and as STEM.pdf, for a paper."""
  arrange(figure)
  for kind in ('png', 'pdf'):
    save(figure, f'{stem}.{kind}')
