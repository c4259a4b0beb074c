"""The folder of a run: files that stay consistent if the process is killed."""

from collections.abc import Collection, Generator
import contextlib
import json
import os
import tempfile

import filelock

from hmm_jax.data import storage
from hmm_jax.experiment.table import Table
from hmm_jax.types import InputError


class Workdir:
  """The folder of one run: config, metrics, tables, summary, plots, checkpoints.

  Files are replaced atomically. Tables, such as clients.csv, are appended to instead;
  incomplete rows of a killed process are dropped on resuming. One process trains in it at a time,
  and any number may read it.
  """

  def __init__(self, path: str):
    self.path = os.path.expanduser(path)
    self._tables = {}

  def file(self, *names: str) -> str:
    return os.path.join(self.path, *names)

  def initial(self, seed: int) -> str:
    """Returns the file of the model that a training seed began from."""
    return self.file('initial', f'{seed}.safetensors')

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

  def make(self):
    """Makes the folder; nothing else does, for one that vanishes while a run trains is lost."""
    with storage.saving(self.path):
      os.makedirs(self.path, exist_ok=True)

  @contextlib.contextmanager
  def owned(self) -> Generator[None]:
    """Keeps other processes from training in the folder, until the end or a kill.

    Raises:
      InputError: another process is training in it.
    """
    lock = filelock.FileLock(self.file('.lock'))
    try:
      self.make()
      lock.acquire(timeout=0)
    except filelock.Timeout as error:
      raise InputError(f'got workdir={self.path}, in which another process is training; expected '
                       'another --workdir, or to wait until that process has ended') from error
    except OSError as error:
      raise storage.unsaved(lock.lock_file, error) from error
    try:
      storage.remove_leftovers(self.path)
      yield
    finally:
      lock.release()

  def results(self) -> list[str]:
    """Returns the names of the results of a run in this folder."""
    names = [name for name in ('metrics.csv', 'clients.csv', 'summary.json')
             if os.path.lexists(self.file(name))]
    saved = self.file('checkpoints')
    empty = not os.path.lexists(saved) or (os.path.isdir(saved) and not os.listdir(saved))
    return names if empty else [*names, 'checkpoints']

  def read_json(self, name: str, needed: Collection[str] = ('rounds',)) -> dict | None:
    """Returns the content of a JSON file of a run; None if it is absent.

    Raises:
      InputError: it is damaged, or lacks one of the needed keys.
    """
    path = self.file(name)
    try:
      with open(path) as file:
        content = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
      return None
    except (OSError, ValueError, RecursionError) as error:
      raise InputError(f'got a damaged {path}; expected JSON') from error
    if not isinstance(content, dict) or not set(needed) <= content.keys():
      raise InputError(f'got a foreign {path}; expected one written by a run')
    digest = content.pop('digest', None)  # Earlier releases wrote none.
    if digest not in (None, storage.digest_of_json(content)):
      raise InputError(f'got a damaged {path}; expected it as the run has written it')
    return content

  def write_json(self, name: str, content: dict):
    """Replaces a JSON file; the digest that is written last tells damage."""
    with storage.replacing(self.file(name)) as new, open(new, 'w') as file:
      json.dump(content | {'digest': storage.digest_of_json(content)}, file, indent=2)
      file.write('\n')

  def table(self, name: str) -> Table:
    """Returns NAME.csv; the same object for the same name, which knows what it has written."""
    if name not in self._tables:
      needed = {'metrics': {'round', 'seed', 'seconds'}, 'clients': {'round', 'seed', 'client'},
                'partition': {'client'}}.get(name, {'round', 'seed'})
      self._tables[name] = Table(self.file(f'{name}.csv'), needed)
    return self._tables[name]

  def read_metrics(self) -> list[dict]:
    """Returns the rows of metrics.csv; an empty list if it is absent."""
    return self.table('metrics').read()

  def read_table(self, name: str) -> list[dict]:
    """Returns the rows of NAME.csv; an empty list if it is absent."""
    return self.table(name).read()
