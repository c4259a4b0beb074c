"""Loads saved models as one stack, from files of tensors or folders of runs."""

from collections.abc import Sequence
import contextlib

import jax.numpy as jnp
import numpy as np

from hmm_jax.data.files import DEFAULT_LIMIT, Limit
from hmm_jax.experiment.locate import opened as source
from hmm_jax.models import files
from hmm_jax.types import Array, InputError


def load(paths: Sequence[str],
         limit: Limit = DEFAULT_LIMIT) -> tuple[dict[str, Array], dict[str, str]]:
  """Loads models as one stack, {name: [K, ...]}, one tensor at a time, and the metadata of all.

  Args:
    paths: as in hmm_jax/experiment/locate.py.
    limit: what a compressed file may unpack to.

  Raises:
    InputError: the models differ in names, shapes or types, or hold NaN or infinity; infinities
      that are the same in all, such as a mask's, may stay.
  """
  if not paths:
    raise InputError('got no --models; expected files of tensors, or folders of runs')
  with contextlib.ExitStack() as files:
    opened = [files.enter_context(source(path, limit)) for path in paths]
    for path, file in zip(paths, opened, strict=True):
      check_same(path, file.shapes, paths[0], opened[0].shapes)
    stacked = {name: placed(stack(name, paths, opened)) for name in opened[0].shapes}
    shared = set.intersection(*({*file.metadata.items()} for file in opened))
    return stacked, dict(sorted(shared))


def load_base(path: str, like: str, stacked: dict[str, Array],
              limit: Limit = DEFAULT_LIMIT) -> dict[str, Array]:
  """Loads the base model, {name: [...]}.

  Args:
    path: a file or folder, as in `load`.
    like: path of the first model, for errors.
    stacked: the models from `load`.
    limit: as in `load`.

  Raises:
    InputError: it differs from them in names, shapes or types, or holds NaN or infinity.
  """
  with source(path, limit) as file:
    check_same(path, file.shapes, like, {name: x.shape[1:] for name, x in stacked.items()})
    base = {name: read(name, path, file, like, x.dtype) for name, x in stacked.items()}
    for name, x in base.items():
      if not finite(x) and finite(stacked[name]):
        raise not_finite(name, path, x.dtype)
    return {name: placed(x) for name, x in base.items()}


def check_same(path: str, shapes: dict, other: str, wanted: dict):
  """Raises InputError if two models differ in the name or shape of a tensor."""
  for name in sorted(shapes.keys() ^ wanted.keys()):
    has, lacks = (path, other) if name in shapes else (other, path)
    raise InputError(f'got {lacks} without the tensor {name} of {has}; expected models of one '
                     'network')
  for name, shape in wanted.items():
    if shapes[name] != shape:
      raise InputError(f'got {path} with {name} of shape {shapes[name]}; expected {shape}, as in '
                       f'{other}')


def stack(name: str, paths: Sequence[str], opened: Sequence[files.Tensors]) -> np.ndarray:
  """Reads one tensor of every model by `read`: [K, ...].

  Raises:
    InputError: it holds NaN, or an infinity and is not the same in all models.
  """
  first = read(name, paths[0], opened[0])
  stacked = np.empty((len(paths), *first.shape), first.dtype)
  stacked[0] = first
  for k in range(1, len(paths)):
    stacked[k] = read(name, paths[k], opened[k], paths[0], first.dtype)
  for path, x in zip(paths, stacked, strict=True):
    if not finite(x) and (stacked != stacked[:1]).any():
      raise not_finite(name, path, x.dtype)
  return stacked


def read(name: str, path: str, file: files.Tensors, like: str = '',
         dtype: np.dtype | None = None) -> np.ndarray:
  """Reads one tensor; float64 is converted to float32.

  Raises:
    InputError: its type differs from that in `like`, or float32 can't hold its values.
  """
  x = np.asarray(file.read(name))
  if x.dtype == np.float64:
    with np.errstate(over='ignore'):
      wide, x = x, x.astype(np.float32)
    if finite(wide) and not finite(x):
      raise not_finite(name, path, x.dtype)
  if dtype and x.dtype != dtype:
    raise InputError(f'got {path} with {name} in {x.dtype}; expected {dtype}, as in {like}')
  return x


def finite(x: Array) -> bool:
  """Returns whether there is no NaN and no infinity in a tensor."""
  return not jnp.issubdtype(x.dtype, jnp.inexact) or bool(np.isfinite(np.asarray(x)).all())


def not_finite(name: str, path: str, dtype: np.dtype) -> InputError:
  return InputError(f'got {path} with NaN or infinity in {name}; expected finite numbers, as '
                    f'{dtype}')


def placed(x: np.ndarray) -> Array:
  """Puts arrays of floats on the device; integers stay on the host."""
  return jnp.asarray(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x
