"""Figures as SVG inside a page, whose colors they take."""

import io
import re
from typing import NamedTuple

from hmm_jax.report.style import COLORS, FAINT, Figure, arrange, styled

PAGE_COLORS = {'#000000': 'currentColor', '#ffffff': 'var(--card)', FAINT: 'var(--faint)',
               COLORS[0]: 'var(--blue)'}


class Frame(NamedTuple):
  """The axes of a figure in the units of its SVG, and the range of x that they show."""

  left: float
  right: float
  top: float
  bottom: float
  low: float
  high: float


@styled
def inline(figure: Figure, name: str) -> str:
  """Returns a figure as an <svg> element, transparent and in the page's colors of text.

  Its style says how many inches wide it is, so that letters of all figures can have one size.

  Args:
    figure: the figure.
    name: begins the ids in it, so that several fit into one page; letters and digits.
  """
  arrange(figure)
  figure.patch.set_alpha(0)
  for axes in figure.axes:
    axes.patch.set_alpha(0)
  text = io.StringIO()
  figure.savefig(text, format='svg', metadata=dict.fromkeys(
      ('Creator', 'Date', 'Format', 'Type')))
  svg = text.getvalue()
  svg = svg[svg.index('<svg'):]
  svg = re.sub(r' (xmlns(:xlink)?|version|width|height)="[^"]*"', '', svg, count=5)
  svg = re.sub(r'font-family: [^;"]*', 'font-family: inherit', svg)
  svg = re.sub(r'((?: id|xlink:href)="#?|url\(#)(?!data:)', rf'\1{name}-', svg)
  inches = f'<svg style="--inches: {figure.get_figwidth():.2f}"'
  return themed(svg.replace('<svg', inches, 1)).strip()


def themed(text: str) -> str:
  """Returns text with the page's colors for those that a dark page would swallow."""
  for color, of_page in PAGE_COLORS.items():
    text = re.sub(color, of_page, text, flags=re.IGNORECASE)
  return text


def frame(figure: Figure) -> Frame:
  """Returns where the first axes of an arranged figure are."""
  axes, points = figure.axes[0], 72
  box = axes.get_position()
  wide, high = figure.get_size_inches() * points
  return Frame(box.x0 * wide, box.x1 * wide, (1 - box.y1) * high, (1 - box.y0) * high,
               *axes.get_xlim())
