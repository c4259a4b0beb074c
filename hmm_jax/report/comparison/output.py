"""Files and output of a comparison."""

from collections.abc import Sequence
import os

from hmm_jax.data import storage
from hmm_jax.report.comparison import figure, table
from hmm_jax.report.comparison.numbers import (
    Entry,
    Line,
    about_spread,
    chosen,
    compare,
    notes,
    ranked,
    unfinished,
)
from hmm_jax.report.screen import Screen


def save(entries: Sequence[Entry], metric: str, by: str, folder: str) -> list[Line]:
  """Writes table.csv, table.md, table.tex, curves.png and curves.pdf; returns the table.

  Raises:
    SaveError: the file system refuses.
  """
  lines = compare(entries, metric)
  with storage.saving(folder):
    os.makedirs(folder, exist_ok=True)
  header, cells, said = table.header(lines), table.cells(lines), _said(lines, metric)
  texts = {'table.csv': table.as_csv(lines, metric),
           'table.md': '\n'.join([
               table.markdown(header, cells), *(f'\n{note}' for note in said), '']),
           'table.tex': table.latex(header, cells, said)}
  for name, text in texts.items():
    with (storage.replacing(os.path.join(folder, name)) as new,
          open(new, 'w', encoding='utf-8') as file):
      file.write(text)
  figure.draw(entries, metric, by, [
      os.path.join(folder, f'curves.{kind}') for kind in ('png', 'pdf')])
  return lines


def show(lines: Sequence[Line], metric: str, folder: str, screen: Screen):
  """Prints the table, and what its reader must know."""
  for note in notes(lines):
    screen.say(note)
  screen.table(figure.in_words(metric), table.header(lines), table.cells(lines))
  screen.say(f'figure and tables: {folder}')


def show_choice(lines: Sequence[Line], metric: str, folder: str, screen: Screen):
  """Prints the table, the best on validation data first, and which run that chooses."""
  best = chosen(lines)
  for note in [about_spread([line.entry for line in lines]), *unfinished(lines)]:
    screen.say(note)
  columns = ['run', best.entry.criterion if best else 'validation', *table.header(lines)[2:4]]
  screen.table(f'{figure.in_words(metric)}, sorted by validation', columns, [
      [line.entry.name, table.spread(line.validation), table.spread(line.last),
       table.spread(line.selected)] for line in ranked(lines)])
  screen.say(f'figure and tables: {folder}')
  screen.say(f'chosen on validation: {best.entry.name}' if best else
             'nothing is chosen: expected validation examples, and one criterion for all runs')


def _said(lines, metric):
  return [f'{figure.in_words(metric)}.', *notes(lines)]
