"""Tables of a run: CSV files that grow by rows, each of which has a round and a seed."""

from collections.abc import Generator, Iterable, Mapping
import contextlib
import csv
import hashlib
import os

from hmm_jax.data import storage
from hmm_jax.types import InputError, SaveError

TEXTS = ('name',)  # columns that hold no numbers


class Table:
  """One CSV file; what a kill left incomplete at its end is not read.

  A digest is that of the values, so that a column that comes later doesn't change it.
  """

  def __init__(self, path: str, needed: set[str]):
    self.path, self._needed = path, needed
    self._grown = None  # (size of the file, hasher of its rows), of one that is appended to

  def read(self, up_to: int | None = None) -> list[dict]:
    """Returns the rows, or those up to a round; an empty list without a file.

    Raises:
      InputError: the file is damaged, or not of a run.
    """
    return [values for _, values in self._rows(up_to)]

  def write(self, rows: list[dict], columns: Iterable[str] = ()):
    """Replaces the file: first some columns, then one for every other name in the rows."""
    columns = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    with storage.replacing(self.path) as new, open(new, 'w', newline='') as file:
      writer = csv.DictWriter(file, list(columns))
      writer.writeheader()
      writer.writerows(rows)
    self._grown = os.path.getsize(self.path), _hashed(rows)

  def append(self, rows: list[dict]):
    """Adds rows at the end of the file, which may be too large to be rewritten each time.

    Raises:
      SaveError: the file system refuses, or somebody else has changed the file.
    """
    if not rows:
      return
    if self._grown and self._grown[0] != self._size():
      raise SaveError(f'{self.path} was removed or changed while the run was training; expected '
                      'it as the run has written it')
    rows = [{name: '' if value != value else value for name, value in row.items()} for row in rows]
    header = self.columns()
    if not rows[0].keys() <= set(header):  # A new file, or one that lacks a column.
      self.write(self.read() + rows, header)
      return
    hasher = self._grown[1] if self._grown else _hashed(text for text, _ in self._rows())
    with storage.saving(self.path), open(self.path, 'a', newline='', opener=_no_link) as file:
      csv.DictWriter(file, header).writerows(rows)
      file.flush()
      os.fsync(file.fileno())
    self._grown = self._size(), _hashed(rows, hasher)

  def digest(self, up_to: int | None = None) -> str:
    """Returns the digest of the rows, or of those up to a round; errors as in `read`."""
    if up_to is None and self._grown:
      return self._grown[1].hexdigest()
    return _hashed(text for text, _ in self._rows(up_to)).hexdigest()

  def cut(self, after: int):
    """Drops the rows after a round, and an incomplete last line; errors as in `read`."""
    kept = [text for text, _ in self._rows(after)]
    if not kept:
      with storage.saving(self.path), contextlib.suppress(FileNotFoundError):
        os.remove(self.path)
    elif not self._ends_with(len(kept)):
      self.write(kept, self.columns())
    self._grown = self._size(), _hashed(kept)

  def _rows(self, up_to: int | None = None) -> Generator[tuple[dict[str, str], dict]]:
    """Yields each row as text and as numbers, without the values that are missing.

    Rows are in the order of rounds; what comes after the round `up_to` is not looked at.
    """
    try:
      with open(self.path, newline='') as file:
        for row in csv.DictReader(_complete_lines(file)):
          text = {name: value for name, value in row.items() if value != ''}
          if not self._needed <= text.keys():
            raise InputError(f'got a foreign {self.path}; expected one written by a run, with '
                             f'columns {", ".join(sorted(self._needed))}')
          if up_to is not None and _number(text['round']) > up_to:
            return
          yield text, {name: value if name in TEXTS else _number(value)
                       for name, value in text.items()}
    except (FileNotFoundError, NotADirectoryError):
      return
    except InputError:
      raise
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
      raise InputError(f'got a damaged {self.path}; expected numbers') from error

  def columns(self) -> list[str]:
    """Returns the names of the columns; none without a file."""
    try:
      with open(self.path, newline='') as file:
        return next(csv.reader(file), [])
    except FileNotFoundError:
      return []

  def _size(self) -> int:
    return os.path.getsize(self.path) if os.path.exists(self.path) else 0

  def _ends_with(self, rows: int) -> bool:
    """Returns whether the file has a header and so many complete rows, and nothing else."""
    with open(self.path, newline='') as file:
      lines = [line for line in file if line.strip()]
    return len(lines) == 1 + rows and lines[-1].endswith('\n')


def disordered(rows: Iterable[Mapping], seeds: Iterable[int], clients: int = 1) -> str:
  """Says what is wrong with rows that should be as many for each evaluation and seed; or ''.

  Args:
    rows: in the order of the file.
    seeds: of the run.
    clients: rows of a seed at one evaluation.
  """
  counts = {}
  for row in rows:
    of_round = counts.setdefault(row['round'], {})
    of_round[row['seed']] = of_round.get(row['seed'], 0) + 1
  rounds, seeds = list(counts), list(seeds)
  if rounds != sorted(rounds):
    return 'rounds out of order'
  for number, of_round in counts.items():
    # The last round has twice as many if the algorithm has a final step.
    times = {count / clients for count in of_round.values()}
    if sorted(of_round) != sorted(seeds) or times not in ({1}, {2}) or (
        times == {2} and number != rounds[-1]):
      return f'rows that are missing, doubled or of other seeds in round {number}'
  return ''


def _complete_lines(file):
  return (line for line in file if line.endswith('\n') and line.strip())


def _no_link(path, flags):
  return os.open(path, flags | getattr(os, 'O_NOFOLLOW', 0))


def _hashed(rows: Iterable[Mapping], hasher=None):
  """Hashes the values of rows; those that are missing or NaN are alike."""
  hasher = hasher or hashlib.blake2b(digest_size=16)
  for row in rows:
    values = '\n'.join(f'{name}={value}' for name, value in row.items()
                       if str(value) not in ('', 'nan'))
    hasher.update(f'{values}\n\n'.encode())
  return hasher


def _number(text: str) -> int | float:
  return int(text) if text.lstrip('-').isdigit() else float(text)
