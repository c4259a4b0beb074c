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
  """Puts paragraphs that are formulas or lists of fields between fences."""
  return '\n\n'.join(
      f'```text\n{paragraph}\n```'
      if LAID_OUT.match(paragraph) and not SECTIONS.match(paragraph) and i else paragraph
      for i, paragraph in enumerate(text.split('\n\n')))
