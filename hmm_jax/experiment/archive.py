"""What a run has saved: checkpoints and tables that belong together, and proof that they do.

Each evaluation writes the tables, then the checkpoint, and last a manifest, which holds the
digests of all that it goes with. A checkpoint without a manifest was cut short by a kill; runs of
earlier releases have no manifests at all, and are read without proof.
"""

from collections.abc import Callable, Mapping
import contextlib
import os
from typing import NamedTuple

from jax.experimental import multihost_utils
import numpy as np

from hmm_jax.data import storage
from hmm_jax.experiment import table
from hmm_jax.experiment.checkpoint import Checkpoints
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.types import InputError, PyTree

_FOLDER = 'manifests'


class Saved(NamedTuple):
  """A point that a run can go on from.

  round:      the rounds done.
  rows:       of metrics.csv up to there.
  unfinished: arrays of the rounds since the last evaluation; empty after an evaluation.
  """

  round: int
  rows: list[dict]
  unfinished: dict[str, np.ndarray]


class Archive:
  """The saved points of a run in its workdir.

  Args:
    workdir: the run's.
    tables: names of the tables that grow with metrics.csv.
    keep: number of points kept.
    data: {what: digest} of the data that the run is trained on; None to take any.
  """

  def __init__(self, workdir: Workdir, tables: tuple[str, ...] = ('clients',), keep: int = 2,
               data: Mapping[str, str] | None = None):
    self._workdir, self._tables, self._keep, self._data = workdir, tables, keep, data
    self._checkpoints = Checkpoints(workdir.file('checkpoints'))

  def newest(self, *, previous: bool = False, seeds: tuple[int, ...] = (),
             clients: int = 1) -> Saved | None:
    """Returns the newest saved point, after comparing its files; None if nothing was saved.

    Args:
      previous: if it is damaged, take the last whole one instead.
      seeds, clients: of the run, to check the rows of a release without manifests.

    Raises:
      InputError: a file is damaged, the data are others than those the run began with, or several
        processes do not see the same folder.
    """
    found, errors = self._newest(previous, seeds, clients)
    seen = multihost_utils.process_allgather(np.int32(found.round if found else -1))
    if (seen != seen.ravel()[0]).any():
      raise InputError(f'got {self._workdir.path} with different checkpoints in other processes; '
                       'expected a workdir that all processes share')
    if errors and not found:
      raise errors[0]
    if found:
      self.check_data(self._data or {})
    return found

  def check_data(self, data: Mapping[str, str]):
    """Raises InputError if a run was trained on other data: {what: digest}."""
    said = {}
    for number in self.rounds():
      with contextlib.suppress(InputError):  # A damaged one has been dealt with.
        said = (self._said(number) or {}).get('data', {})
    for what, digest in data.items():
      if said.get(what, digest) != digest:
        raise InputError(f'got other {what} than those that {self._workdir.path} was trained on; '
                         'expected the data as they were, or another --workdir')

  def rounds(self) -> list[int]:
    """Returns the rounds of the complete points, in order."""
    while True:
      manifests, rounds = self._manifests(), self._checkpoints.rounds()
      if not os.path.isdir(self._workdir.file(_FOLDER)):
        return rounds
      if manifests == self._manifests():  # Otherwise the run went on between the two.
        return sorted(manifests & set(rounds))

  def restore(self, number: int, like: PyTree) -> PyTree:
    """Loads the states of a saved point; arguments and errors as of `Checkpoints.restore`."""
    return self._checkpoints.restore(number, like)

  def begin(self, after: int):
    """Removes what was written after a saved point, 0 for all; from there on, `save` is called."""
    for name in ('metrics', *self._tables):
      self._workdir.table(name).cut(after)
    self._remove(lambda number: number <= after)
    if not os.path.isdir(self._workdir.file(_FOLDER)):
      # Where there is this folder, a point has a manifest: it comes with that of an old release.
      with storage.new_folder(self._workdir.file(_FOLDER)) as new:
        if after:
          self._write_manifest(os.path.basename(new), after, {})

  def save(self, number: int, states: PyTree, primary: bool,
           unfinished: Mapping[str, np.ndarray] | None = None):
    """Saves a point: the tables must have been written.

    Args:
      number: the rounds done.
      states: tree of arrays.
      primary: whether this process writes the files.
      unfinished: as in `Saved`.

    Raises:
      SaveError: the file system refuses.
    """
    self._checkpoints.save(number, states)
    if not primary:
      return
    self._write_manifest(_FOLDER, number, unfinished or {})
    first = self.rounds()[-self._keep:][0]
    self._remove(lambda number: number >= first)

  def _newest(self, previous, seeds, clients) -> tuple[Saved | None, list[InputError]]:
    """Returns the newest whole point, and the errors of those before it was found."""
    errors = []
    for number in reversed(self.rounds()):
      try:
        return self._point(number, seeds, clients), errors
      except InputError as error:
        if number not in self.rounds():  # The run goes on, and has removed it meanwhile.
          return self._newest(previous, seeds, clients)
        errors.append(error)
        if not previous:
          break
    return None, errors

  def _write_manifest(self, folder, number, unfinished):
    paths = self._checkpoints.files(number)
    if unfinished:
      paths.append(self._workdir.file(folder, f'{number}.npz'))
      with storage.replacing(paths[-1]) as new, open(new, 'wb') as file:
        np.savez(file, **unfinished)
    self._workdir.write_json(os.path.join(folder, f'{number}.json'), {
        'round': number,
        'data': dict(self._data or {}),
        'tables': {name: self._workdir.table(name).digest() for name in ('metrics', *self._tables)},
        'files': {os.path.relpath(path, self._workdir.path): storage.digest_of_file(path)
                  for path in paths}})

  def _manifests(self) -> set[int]:
    folder = self._workdir.file(_FOLDER)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return {int(name.removesuffix('.json')) for name in names
            if name.endswith('.json') and name.removesuffix('.json').isdecimal()}

  def _remove(self, unless):
    """Removes the points of other rounds; the manifest, which makes one complete, goes first."""
    for number in self._manifests():
      if not unless(number):
        for path in (self._workdir.file(_FOLDER, f'{number}.{kind}') for kind in ('json', 'npz')):
          with storage.saving(path), contextlib.suppress(FileNotFoundError):
            os.remove(path)
    self._checkpoints.remove(unless)

  def _point(self, number, seeds, clients) -> Saved:
    """Returns a point after comparing its files with its manifest."""
    said = self._said(number)
    rows = self._workdir.table('metrics').read(number)
    if said is None:
      self._check_rows(number, rows, seeds, clients)
      return Saved(number, rows, {})
    for name, digest in said['files'].items():
      self._compare(self._workdir.file(name), digest, storage.digest_of_file)
    for name, digest in said['tables'].items():
      self._compare(self._workdir.table(name).path, digest,
                    lambda _, name=name: self._workdir.table(name).digest(number))
    arrays = os.path.join(_FOLDER, f'{number}.npz')
    if arrays not in said['files']:
      return Saved(number, rows, {})
    with np.load(self._workdir.file(arrays)) as file:
      return Saved(number, rows, dict(file))

  def _said(self, number):
    """Returns the manifest of a point; None for one of an earlier release."""
    name = os.path.join(_FOLDER, f'{number}.json')
    said = self._workdir.read_json(name, ('round', 'data', 'tables', 'files'))
    if said and said['round'] != number:
      raise InputError(f'got {self._workdir.file(name)} of round {said["round"]}; expected that of '
                       f'round {number}')
    return said

  def _compare(self, path: str, digest: str, digest_of: Callable):
    try:
      same = digest_of(path) == digest
    except OSError:
      same = False
    if not same:
      raise InputError(f'got a damaged {path}; expected it as the run has written it, or '
                       'resume=previous to go back to the last whole checkpoint')

  def _check_rows(self, number, rows, seeds, clients):
    if not rows or rows[-1]['round'] != number:
      raise InputError(f'got {self._workdir.file("metrics.csv")} without round {number} of the '
                       'newest checkpoint; expected metrics and checkpoints of the same run')
    if not seeds:
      return
    own = self._workdir.table('clients').read(number)
    for name, found, count in (('metrics', rows, 1), ('clients', own, clients)):
      if wrong := table.disordered(found, seeds, count):
        raise InputError(f'got a damaged {self._workdir.file(name)}.csv, with {wrong}; expected '
                         'one row for each evaluation and seed')
