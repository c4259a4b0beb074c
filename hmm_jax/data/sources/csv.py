"""Tables in CSV files, whose columns are chosen by name."""

from collections.abc import Iterator
import csv
from functools import partial
import itertools
import math

import numpy as np

from hmm_jax.data import columns, files
from hmm_jax.registry import Setting, Source
from hmm_jax.types import Dataset, InputError

_DELIMITERS = ',;\t|'
_MISSING = ('', 'nan', 'na', 'n/a', 'null', 'none', '?')  # what stands for no number


def load(path: str, settings) -> Dataset:
  """Loads a table with a header: columns to learn, owners, splits, and inputs.

  Columns of whole numbers, of other numbers and of strings are told apart. An input of strings
  becomes one input for each distinct string. Fields are separated by what occurs most in the
  header, of commas, semicolons, tabs and bars.

  Args:
    path: of the file, .gz or .xz if it is compressed.
    settings: of the source.

  Returns:
    A Dataset with y as in the file, strings or numbers, [D] or [D, C].

  Raises:
    InputError: the file can't be read, a column is not there, or a value is missing.
  """
  refusal = partial(_error, path)
  table = read(path, files.Limit(settings.unpack_limit, 'csv.unpack_limit'), refusal)
  roles = columns.Roles(
      columns.listed(settings.target, table), settings.client, settings.split,
      columns.listed(settings.inputs, table),
      {role: f'csv.{role}' for role in columns.Roles._fields})
  return columns.dataset(f'csv:{path}', table, roles, refusal)


def read(path: str, limit: files.Limit, refusal: files.Refusal) -> dict[str, np.ndarray]:
  """Reads a table with a header: {column: [D] of whole numbers, floats or strings}.

  Raises:
    InputError: the file can't be read, or a value is missing.
  """
  with files.reading('a readable CSV file', refusal), files.opened_text(
      path, limit, refusal) as file:
    header, rows = _read(file, refusal)
  return {name: _column(name, [row[i] for row in rows], refusal) for i, name in enumerate(header)}


def _error(path, text) -> InputError:
  return InputError(f'got dataset=csv:{path}; {text}')


def _read(file, refusal) -> tuple[list[str], list[list[str]]]:
  """Returns the names of the columns, and the fields of each row."""
  first = file.readline()
  fields = partial(csv.reader, skipinitialspace=True)
  delimiter = max(_DELIMITERS, key=lambda mark: len(next(fields([first], delimiter=mark), [])))
  reader = fields(itertools.chain([first], file), delimiter=delimiter)
  header = [name.strip() for name in next(reader, [])]
  if not any(header):
    raise refusal('expected a header with the names of the columns, the file is empty')
  for place, name in enumerate(header, 1):
    if not name or header.count(name) > 1:
      raise refusal(f'expected columns of different names, the header has {name!r} '
                    f'{header.count(name)} times' if name else
                    f'expected a name for each column, column {place} has none')
  rows = [*_rows(reader, len(header), refusal)]
  if not rows:
    raise refusal('expected examples, it has only a header')
  return header, rows


def _rows(reader, width, refusal) -> Iterator[list[str]]:
  for row in reader:
    if row and len(row) != width:
      raise refusal(f'expected {width} fields in each row, as in the header; line '
                    f'{reader.line_num} has {len(row)}')
    if row:
      yield row


def _column(name, texts, refusal) -> np.ndarray:
  """Returns a column as whole numbers, floats or strings.

  Raises:
    InputError: a value is missing, or numbers and other texts are mixed.
  """
  texts = [text.strip() for text in texts]
  numbers = [_number(text) for text in texts]
  known = [number is not None for number in numbers]
  missing = [text.lower() in _MISSING for text in texts]
  where = lambda marks: f'row {marks.index(True) + 1}'
  if any(known) or all(missing):
    if any(missing):
      raise refusal(f'column {name!r} has no value in {where(missing)}; expected one everywhere')
    if not all(known):
      odd = [not number for number in known]
      raise refusal(f'column {name!r} has {texts[odd.index(True)][:40]!r} in {where(odd)} among '
                    'numbers; expected numbers, or only other texts')
    whole = all(isinstance(number, int) and abs(number) < 2**63 for number in numbers)
    return np.array(numbers, np.int64 if whole else np.float64)
  if '' in texts:
    raise refusal(f'column {name!r} has no value in row {texts.index("") + 1}; expected one '
                  'everywhere')
  return np.array(texts)


def _number(text) -> int | float | None:
  """Reads a finite number; None if a text is none."""
  try:
    return int(text)
  except ValueError:
    pass
  try:
    number = float(text)
  except ValueError:
    return None
  return number if math.isfinite(number) else None


SOURCE = Source(
    'csv', lambda path, settings, data_dir: load(path, settings),
    files.UNPACK_LIMIT
    | {'target': Setting('', 'the column to learn, or several of numbers, separated by commas'),
       'client': Setting('', 'the column of the natural client of each example'),
       'split': Setting('', 'the column with train, validation (which is trained on) or test'),
       'inputs': Setting('', "the columns of the inputs, separated by commas; '': all others")},
    path=True,
    summary='a table with a header; numbers are inputs, and each category is one')
