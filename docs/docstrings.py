"""Keeps formulas and lists of fields in docstrings as they were laid out, on the site.

In this library a docstring's indented paragraphs are formulas, and lines `name:  meaning` are the
fields of a NamedTuple. Markdown would join their lines.
"""

import re
from typing import Any

import griffe

SECTIONS = re.compile(r'(Args|Returns|Raises|Yields|References?):')
LAID_OUT = re.compile(r' |[\w`.]+(\[\w+\])?:\s')


class Layout(griffe.Extension):
  """Fences what is laid out in docstrings."""

  def on_object(self, *, obj: griffe.Object, loader: Any, **_: Any):
    del loader
    if obj.docstring:
      obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
  """Puts formulas and lists of fields between fences; the first paragraph is a sentence."""
  first, *others = text.split('\n\n')
  return '\n\n'.join([first, *map(_fenced, others)])


def _fenced(paragraph):
  if SECTIONS.match(paragraph):
    return paragraph
  if LAID_OUT.match(paragraph):
    return f'```text\n{paragraph}\n```'
  # A sentence that ends with a colon, and what it announces.
  lead, colon, listed = paragraph.partition(':\n  ')
  return f'{lead}:\n\n```text\n  {listed}\n```' if colon else paragraph
