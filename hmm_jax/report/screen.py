"""Console output of commands: tables, progress and errors."""

from collections.abc import Iterable, Sequence
import contextlib
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class Screen:
  """Console for tables and progress: a live bar on a terminal, else one line per evaluation."""

  def __init__(self, *, silent: bool = False):
    self._console = Console(quiet=silent, width=None if sys.stdout.isatty() else 160)
    self._progress = None

  def say(self, text: str):
    self._console.print(text, highlight=False, markup=False, soft_wrap=True)

  def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence]):
    # Text objects, so that brackets are not markup. Only names in the first column may be long.
    table = Table(title=Text(title), title_justify='left')
    for number, name in enumerate(header):
      table.add_column(Text(name), no_wrap=number > 0, overflow='fold')
    for row in rows:
      table.add_row(*(Text(str(cell)) for cell in row))
    self._console.print(table)

  @contextlib.contextmanager
  def progress(self, done: int, total: int):
    """Shows progress; yields a function (round, text) to be called at each evaluation."""
    if not self._console.is_terminal:
      yield lambda number, text: self.say(f'round {number}/{total}  {text}')
      return
    columns = (TextColumn('round'), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(),
               TextColumn('{task.fields[text]}'))
    with Progress(*columns, console=self._console) as bar:
      task = bar.add_task('', total=total, completed=done, text='compiling')
      yield lambda number, text: bar.update(task, completed=number, text=text)


def fail(error: Exception | str, code: int) -> int:
  """Prints an error as one line on stderr; returns the exit code."""
  # After a damaged file, pending reads would report errors to a closed event loop.
  sys.unraisablehook = lambda unraisable: None
  print(f'hmm_jax: {" ".join(str(error).split())}', file=sys.stderr)
  return code
