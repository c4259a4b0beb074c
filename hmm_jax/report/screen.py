"""Console output of commands: tables, progress and errors."""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import itertools
import os
import sys
from typing import IO, cast

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

_READABLE = 30  # Columns that are narrower than this are not wrapped.


class Screen:
  """Console for tables and progress: a live bar on a terminal, else one line per evaluation."""

  def __init__(self, *, silent: bool = False):
    out = _Output()
    self._console = Console(
        quiet=silent, width=None if out.isatty() else 160, file=cast(IO[str], out))

  def say(self, text: str):
    self._console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

  def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence]):
    """Prints a table, or several where the screen is narrow, or lines where it is narrower still.

    Each begins with the names of the rows, which may be folded; sentences are wrapped, and numbers
    are always whole.
    """
    # Rows may be short, as of a run that has fewer seeds than another.
    shown = ([printable(str(cell)) for cell in column]
             for column in itertools.zip_longest(header, *rows, fillvalue=''))
    header, *rows = zip(*shown, strict=True)
    self._console.print(Text(printable(title), style='italic'), soft_wrap=True)
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    names = 1 if len({row[0] for row in rows}) == len(rows) else 2
    groups = fit(widths, self._console.width, names=min(names, len(header)))
    for columns in groups:
      self._print(columns, header, rows)
    if not groups:
      for row in rows:
        for name, cell in zip(header, row, strict=True):
          if cell:
            self.say(f'{name}: {cell}')

  def _print(self, columns, header, rows):
    table = Table()
    for column, width in columns.items():
      # Text objects, so that brackets are not markup.
      table.add_column(Text(header[column]), width=width, overflow='fold')
    for row in rows:
      table.add_row(*(Text(row[column]) for column in columns))
    self._console.print(table)

  @contextlib.contextmanager
  def progress(self, done: int, total: int):
    """Shows progress; yields a function (round, text) to be called at each evaluation."""
    if not self._console.is_terminal:
      yield lambda number, text: self.say(f'round {number}/{total}  {text}')
      return
    with self._bar('round', done, total, transient=False) as report:
      yield report

  @contextlib.contextmanager
  def _bar(self, name, done, total, *, transient):
    said = TextColumn('{task.fields[text]}', markup=False, table_column=Column(overflow='fold'))
    columns = (TextColumn(name, markup=False), MofNCompleteColumn(), BarColumn(),
               TimeRemainingColumn(), said)
    with Progress(*columns, console=self._console, transient=transient) as bar:
      task = bar.add_task('', total=total, completed=done, text='compiling')
      yield lambda number, text: bar.update(task, completed=number, text=printable(text))


class Brief(Screen):
  """Console of one of several runs: a live bar with its name on a terminal; else only sentences.

  Args:
    name: of the run.
    screen: of all.
  """

  def __init__(self, name: str, screen: Screen):
    self._name, self._console = printable(name), screen._console

  def say(self, text: str):
    super().say(f'{self._name}: {text}')

  def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence]):
    pass

  @contextlib.contextmanager
  def progress(self, done: int, total: int):
    if not self._console.is_terminal:
      yield lambda number, text: None
      return
    with self._bar(self._name, done, total, transient=True) as report:
      yield report


class _Output:
  """Standard output that replaces what it can't encode; once it is closed, nothing is printed."""

  @property
  def encoding(self) -> str:
    return getattr(sys.stdout, 'encoding', None) or 'utf-8'

  def isatty(self) -> bool:
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()

  def write(self, text: str):
    self._try(lambda out: out.write(text.encode(self.encoding, 'replace').decode(self.encoding)))

  def flush(self):
    self._try(lambda out: out.flush())

  def _try(self, action: Callable):
    # While a bar is shown, rich puts an object in the place of stdout that prints above the bar.
    out = getattr(sys.stdout, 'rich_proxied_file', sys.stdout)
    if out is None:  # As in a process that was started without one.
      return
    try:
      action(out)
    except (OSError, ValueError) as error:
      complain(f'standard output is closed ({error}): nothing more is printed, the work goes on')
      nowhere = os.open(os.devnull, os.O_WRONLY)
      try:
        os.dup2(nowhere, out.fileno())  # Also what is in its buffer.
      except (OSError, ValueError):
        sys.stdout = None  # Where prints go nowhere.
      finally:
        os.close(nowhere)


def fit(widths: Sequence[int], room: int, *, names: int) -> list[dict[int, int]]:
  """Deals the columns of a table to tables of at most `room` characters.

  Args:
    widths: of the columns.
    room: of the screen.
    names: columns that each of the tables begins with; the first may be folded to half the room.

  Returns:
    {column: width} of each table; none if a column does not fit.
  """
  frame, border = 4, 3  # Characters of a table, and of each further column.
  start = dict(enumerate([min(widths[0], room // 2), *widths[1:names]]))
  left = room - frame - sum(start.values()) - border * (names - 1)
  if len(widths) == names:
    return [start] if left >= 0 else []
  groups, free = [], 0
  for column, width in enumerate(widths[names:], names):
    if width > left - border >= _READABLE:
      width = left - border
    if width > left - border:
      return []
    if width + border > free:
      groups.append(dict(start))
      free = left
    groups[-1][column] = width
    free -= width + border
  return groups


def printable(text: str) -> str:
  """Writes what a terminal could take for a command, such as the escape character, as `\\x1b`."""
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def complain(line: str):
  """Prints one line on stderr, if that is open."""
  if sys.stderr is not None:
    with contextlib.suppress(OSError, ValueError):
      print(f'hmm_jax: {printable(line)}', file=sys.stderr, flush=True)


def fail(error: Exception | str, code: int) -> int:
  """Prints an error as one line on stderr; returns the exit code."""
  complain(' '.join(str(error).split()))
  return code
