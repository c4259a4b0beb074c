"""Saved models as one stack: files of tensors, and the runs of this library."""

from collections.abc import Iterator, Sequence
import contextlib
import os

import jax.numpy as jnp
import numpy as np

from hmm_jax.experiment.saved import Run
from hmm_jax.merge import files
from hmm_jax.types import Array, InputError, PyTree

VIEWS = ('global', 'merged')  # Of a run's models, those that are one for all.


def load(paths: Sequence[str]) -> dict[str, Array]:
  """Loads models as one stack, {name: [K, ...]}, a tensor at a time.

  Args:
    paths: of files, or of folders of runs, FOLDER@SEED for another seed than the first.

  Raises:
    InputError: they differ in names or shapes, or hold what is not a number.
  """
  if not paths:
    raise InputError('got no --models; expected files of tensors, or folders of runs')
  with contextlib.ExitStack() as files:
    opened = [files.enter_context(source(path)) for path in paths]
    for path, file in zip(paths, opened, strict=True):
      check_same(path, file.shapes, paths[0], opened[0].shapes)
    return {name: placed(stack(name, paths, opened)) for name in opened[0].shapes}


def load_base(path: str, like: str, stacked: dict[str, Array]) -> dict[str, Array]:
  """Loads what models were trained from, {name: [...]}.

  Args:
    path: as above.
    like: names the first of the models.
    stacked: these.

  Raises:
    InputError: it is not of their names, shapes and types, or holds what is not a number.
  """
  with source(path) as file:
    check_same(path, file.shapes, like, {name: x.shape[1:] for name, x in stacked.items()})
    return {name: placed(read(name, path, file, like, x.dtype)) for name, x in stacked.items()}


@contextlib.contextmanager
def source(path: str) -> Iterator[files.Tensors]:
  """Opens a file, or a run's model as if it were one."""
  folder, seed = path, ''
  if '@' in path and not os.path.exists(path):
    folder, seed = path.rsplit('@', 1)
  if os.path.isdir(folder):
    named = files.flatten(variables_of_run(folder, seed))
    yield files.Tensors({name: x.shape for name, x in named.items()}, named.__getitem__)
  else:
    with files.opened(path) as file:
      yield file


def check_same(path: str, shapes: dict, other: str, wanted: dict):
  """Raises InputError with the first name or shape in which two models differ."""
  for name in sorted(shapes.keys() ^ wanted.keys()):
    has, lacks = (path, other) if name in shapes else (other, path)
    raise InputError(f'got {lacks} without the tensor {name} of {has}; expected models of one '
                     'network')
  for name, shape in wanted.items():
    if shapes[name] != shape:
      raise InputError(f'got {path} with {name} of shape {shapes[name]}; expected {shape}, as in '
                       f'{other}')


def stack(name: str, paths: Sequence[str], opened: Sequence[files.Tensors]) -> np.ndarray:
  """Reads one tensor of every model, as `read` does: [K, ...]."""
  first = read(name, paths[0], opened[0])
  stacked = np.empty((len(paths), *first.shape), first.dtype)
  stacked[0] = first
  for k in range(1, len(paths)):
    stacked[k] = read(name, paths[k], opened[k], paths[0], first.dtype)
  return stacked


def read(name: str, path: str, file: files.Tensors, like: str = '',
         dtype: np.dtype | None = None) -> np.ndarray:
  """Reads one tensor; float64 becomes float32.

  Raises:
    InputError: it holds NaN or infinity, or is not of the type that it has in `like`.
  """
  x = file.read(name)
  if x.dtype == np.float64:
    with np.errstate(over='ignore'):
      x = x.astype(np.float32)
  if dtype and x.dtype != dtype:
    raise InputError(f'got {path} with {name} in {x.dtype}; expected {dtype}, as in {like}')
  if jnp.issubdtype(x.dtype, jnp.inexact) and not np.isfinite(x).all():
    raise InputError(f'got {path} with NaN or infinity in {name}; expected finite numbers, as '
                     f'{x.dtype}')
  return x


def placed(x: np.ndarray) -> Array:
  """Puts floats on the device; integers stay on the host."""
  return jnp.asarray(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def variables_of_run(folder: str, seed: str) -> PyTree:
  """Loads the one model that a run has for all clients, from its newest checkpoint.

  Args:
    folder: of the run.
    seed: a training seed; '' for the run's first.

  Raises:
    InputError: no checkpoint, no such seed, or only models of the clients' own.
  """
  run = Run.load(folder)
  if seed and seed not in map(str, run.seeds):
    raise InputError(f'got {folder}@{seed}; expected one of its seeds '
                     f'{", ".join(map(str, run.seeds))}')
  views = run.models(int(seed) if seed else None)
  for name in VIEWS:
    if name in views:
      return views[name]
  raise InputError(f'got {folder}, whose algorithm={run.config.algorithm} has no model for all '
                   f'clients; expected a run with a view among {", ".join(VIEWS)}')
