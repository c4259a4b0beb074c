"""The table of a comparison: on a screen, as CSV, Markdown and LaTeX."""

from collections.abc import Iterable, Sequence
import csv
import io
import re

from hmm_jax.report.comparison.numbers import Difference, Line, Spread

_LATEX = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
          '±': r'$\pm$', '−': '$-$', **{c: f'\\{c}' for c in '_%&#${}'}}
_UNITS = ((1e12, 'TB'), (1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB'))


def header(lines: Sequence[Line]) -> list[str]:
  """Returns the names of the columns of `cells`."""
  return ['run', 'seeds', 'last', 'selected on validation',
          f'difference to {lines[0].entry.name}', 'seeds higher', f'{_unit(lines)[1]} per seed',
          'seconds per seed']


def cells(lines: Sequence[Line]) -> list[list[str]]:
  """Returns one row of texts per run."""
  size, _ = _unit(lines)
  return [[line.entry.name, str(len(line.entry.seeds)), spread(line.last), spread(line.selected),
           interval(line.difference), higher(line.difference), f'{line.bytes / size:.4g}',
           f'{line.seconds:.1f}'] for line in lines]


def spread(value: Spread | None) -> str:
  """Formats mean ± std; of one seed, its value."""
  if value is None:
    return ''
  return f'{value.mean:z.4f}' + ('' if value.std is None else f' ± {value.std:.4f}')


def interval(value: Difference | None) -> str:
  """Formats a difference with its confidence interval; of one pair, the difference."""
  if value is None:
    return ''
  ends = [_signed(end) for end in (value.low, value.high) if end is not None]
  return _signed(value.mean) + (f' [{", ".join(ends)}]' if ends else '')


def higher(value: Difference | None) -> str:
  return f'{value.higher} of {value.pairs}' if value else ''


def as_csv(lines: Sequence[Line], metric: str) -> str:
  """Formats the table as CSV, with all digits."""
  out = io.StringIO()
  records = [_record(line, metric) for line in lines]
  writer = csv.DictWriter(out, list(records[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(records)
  return out.getvalue()


def markdown(header: Sequence[str], rows: Iterable[Iterable]) -> str:
  """Formats a table as Markdown, without an end of line."""
  line = lambda cells: '| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in cells) + ' |'
  return '\n'.join([line(header), '|' + '---|' * len(header), *map(line, rows)])


def latex(header: Sequence[str], rows: Sequence[Sequence], notes: Sequence[str]) -> str:
  """Formats a table for LaTeX's booktabs, with notes as comments above it."""
  line = lambda cells: '  ' + ' & '.join(map(escaped, cells)) + r' \\'
  return '\n'.join([
      '% Needs \\usepackage{booktabs}.', *(f'% {" ".join(note.split())}' for note in notes),
      f'\\begin{{tabular}}{{l{"r" * (len(header) - 1)}}}', r'  \toprule', line(header),
      r'  \midrule', *map(line, rows), r'  \bottomrule', r'\end{tabular}', ''])


def escaped(text: str) -> str:
  """Writes a text as LaTeX shows it."""
  return re.sub('.', lambda c: _LATEX.get(c[0], c[0]), str(text))


def _record(line: Line, metric: str) -> dict:
  """Returns a run's numbers by column; what there is none of is empty."""
  record = {'run': line.entry.name, 'metric': metric, 'seeds': len(line.entry.seeds),
            'partitions': line.entry.partitions, 'round': line.round}
  for name, value in (('last', line.last), ('selected', line.selected),
                      ('validation', line.validation)):
    for part in Spread._fields:
      record[f'{name}_{part}'] = getattr(value, part, None)
  record |= {'bytes_per_seed': line.bytes, 'seconds_per_seed': line.seconds}
  for name, value in (('last', line.difference), ('selected', line.difference_selected)):
    for part in Difference._fields:
      record[f'difference_{name}_{part}'] = getattr(value, part, None)
  return record


def _unit(lines) -> tuple[float, str]:
  return unit(max(line.bytes for line in lines))


def unit(most: float) -> tuple[float, str]:
  """Returns how many bytes a unit has, and its name, in which a number of bytes is readable."""
  return next((found for found in _UNITS if most >= found[0]), (1, 'bytes'))


def _signed(value: float) -> str:
  """Formats with a sign; a minus as in print."""
  return f'{value:+.4f}'.replace('-', '−')
