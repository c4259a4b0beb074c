"""The folder of a run: files that stay consistent if the process is killed."""

from collections.abc import Generator
import contextlib
import csv
import itertools
import json
import os
import tempfile

import filelock

from hmm_jax.types import InputError


class Workdir:
  """The folder of one run: config, metrics, tables, summary, plots, checkpoints.

  Files are replaced atomically. Tables, such as clients.csv, are appended to instead;
  incomplete rows of a killed process are dropped on resuming. One process trains in it at a time.
  """

  def __init__(self, path: str):
    self.path = path

  def file(self, *names: str) -> str:
    return os.path.join(self.path, *names)

  def check_writable(self, flag: str = 'workdir'):
    """Raises InputError unless the folder is writable or can be created.

    Args:
      flag: name of the user's flag, for the error.
    """
    folder = os.path.abspath(self.path)
    while not os.path.lexists(folder):
      folder = os.path.dirname(folder)
    try:
      tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
      raise InputError(f'got {flag}={self.path}; expected a writable folder, but {folder}: '
                       f'{error.strerror}') from error

  @contextlib.contextmanager
  def owned(self) -> Generator[None]:
    """Keeps other processes from training in the folder, until the end or a kill.

    Raises:
      InputError: another process is training in it.
    """
    os.makedirs(self.path, exist_ok=True)
    lock = filelock.FileLock(self.file('.lock'))
    try:
      lock.acquire(timeout=0)
    except filelock.Timeout as error:
      raise InputError(f'got workdir={self.path}, in which another process is training; expected '
                       'another --workdir, or to wait until that process has ended') from error
    try:
      yield
    finally:
      lock.release()

  def results(self) -> list[str]:
    """Returns the names of the results of a run in this folder."""
    names = [name for name in ('metrics.csv', 'clients.csv', 'summary.json')
             if os.path.lexists(self.file(name))]
    saved = self.file('checkpoints')
    return names + (['checkpoints'] if os.path.isdir(saved) and os.listdir(saved) else [])

  def read_json(self, name: str) -> dict | None:
    """Returns the content of a JSON file of a run; None if it is absent.

    Raises:
      InputError: it is damaged, or not of a run.
    """
    try:
      with open(self.file(name)) as f:
        content = json.load(f)
    except FileNotFoundError:
      return None
    except (OSError, ValueError) as error:
      raise InputError(f'got a damaged {self.file(name)}; expected JSON') from error
    if not isinstance(content, dict) or 'rounds' not in content:
      raise InputError(f'got a foreign {self.file(name)}; expected one written by a run')
    return content

  def write_json(self, name: str, content: dict):
    with self._replacing(name) as f:
      json.dump(content, f, indent=2)
      f.write('\n')

  def read_metrics(self) -> list[dict]:
    """Returns the rows of metrics.csv; an empty list if it is absent."""
    return self._parse('metrics.csv', self._lines('metrics.csv'), {'round', 'seed', 'seconds'})

  def read_table(self, name: str) -> list[dict]:
    """Returns the rows of NAME.csv; an empty list if it is absent."""
    return self._parse_table(name, self._lines(f'{name}.csv'))

  def write_metrics(self, rows: list[dict]):
    """Writes metrics.csv with one column per metric; missing values are left empty."""
    self._write_rows('metrics.csv', rows)

  def append_table(self, name: str, rows: list[dict]):
    """Appends rows to NAME.csv, which may be too large to be rewritten each time."""
    if not rows:
      return
    rows = [{column: '' if value != value else value for column, value in row.items()}
            for row in rows]
    header = next(csv.reader(self._lines(f'{name}.csv', most=1)), [])
    if not rows[0].keys() <= set(header):  # A new file, or one that lacks a column.
      self._write_rows(f'{name}.csv', self.read_table(name) + rows)
      return
    with open(self.file(f'{name}.csv'), 'a', newline='') as f:
      csv.DictWriter(f, header).writerows(rows)
      f.flush()
      os.fsync(f.fileno())

  def drop_table(self, name: str, *, after: int):
    """Drops the rows of NAME.csv after a round, and an incomplete last line.

    Raises:
      InputError: the file is damaged otherwise, or not of a run.
    """
    header, *lines = self._lines(f'{name}.csv') or ['']
    whole = [line for line in lines if line.endswith('\n') and line.strip()]
    rows = self._parse_table(name, [header, *whole])
    kept = [line for line, row in zip(whole, rows, strict=True) if row['round'] <= after]
    if not kept:
      with contextlib.suppress(FileNotFoundError):
        os.remove(self.file(f'{name}.csv'))
    elif len(kept) < len(lines):
      with self._replacing(f'{name}.csv') as f:
        f.writelines([header, *kept])

  def _lines(self, name: str, most: int | None = None) -> list[str]:
    """Returns the lines of a file, all or the first `most`; an empty list if it is absent."""
    try:
      with open(self.file(name), newline='') as f:
        return list(itertools.islice(f, most))
    except FileNotFoundError:
      return []
    except (OSError, ValueError) as error:
      raise InputError(f'got a damaged {self.file(name)}; expected text') from error

  def _parse(self, name: str, lines: list[str], columns: set[str]) -> list[dict]:
    try:
      rows = [{column: _number(value) for column, value in row.items() if value != ''}
              for row in csv.DictReader(lines)]
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
      raise InputError(f'got a damaged {self.file(name)}; expected numbers') from error
    if not all(columns <= row.keys() for row in rows):
      raise InputError(f'got a foreign {self.file(name)}; expected one written by a run, '
                       f'with columns {", ".join(sorted(columns))}')
    return rows

  def _parse_table(self, name: str, lines: list[str]) -> list[dict]:
    needed = {'round', 'seed'} | ({'client'} if name == 'clients' else set())
    return self._parse(f'{name}.csv', lines, needed)

  def _write_rows(self, name: str, rows: list[dict]):
    with self._replacing(name) as f:
      writer = csv.DictWriter(f, list(dict.fromkeys(column for row in rows for column in row)))
      writer.writeheader()
      writer.writerows(rows)

  @contextlib.contextmanager
  def _replacing(self, name: str):
    os.makedirs(self.path, exist_ok=True)
    temporary = self.file(f'.{name}.new')
    with open(temporary, 'w', newline='') as f:
      yield f
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, self.file(name))


def _number(text: str) -> int | float:
  return int(text) if text.lstrip('-').isdigit() else float(text)
