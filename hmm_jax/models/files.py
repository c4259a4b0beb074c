"""Files of named tensors: safetensors and npz. Pickles are refused, as they can run code."""

from collections.abc import Callable, Generator
import contextlib
import os
import re
import stat
from typing import NamedTuple
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hmm_jax.data import members, storage
from hmm_jax.data.files import DEFAULT_LIMIT, Limit
from hmm_jax.types import Array, InputError

SUFFIXES = ('.safetensors', '.npz')


class Tensors(NamedTuple):
  """The tensors of one file, read lazily.

  shapes:   {name: shape}.
  read:     (name) -> array; raises InputError if it is damaged, or of neither integers nor floats.
  metadata: what the file says of itself, such as {'format': 'pt'}.
  """

  shapes: dict[str, tuple[int, ...]]
  read: Callable[[str], Array]
  metadata: dict[str, str]


@contextlib.contextmanager
def opened(path: str, limit: Limit = DEFAULT_LIMIT) -> Generator[Tensors]:
  """Opens a file of tensors.

  Args:
    path: of the file.
    limit: what compressed tensors may unpack to.

  Raises:
    InputError: it is absent, damaged, a pickle, unpacks to too much, or of an unsupported format.
  """
  expected = f'got {path}; expected a file {" or ".join(SUFFIXES)}, or the folder of a run'
  try:
    regular = stat.S_ISREG(os.stat(path).st_mode)  # To open a named pipe would wait for a writer.
    pickled = regular and _is_pickle(path)
  except (OSError, ValueError) as error:
    raise InputError(f'{expected}: {getattr(error, "strerror", error)}') from error
  if pickled:
    raise InputError(f'got {path}, a pickle, which can run any code when it is read; expected '
                     'safetensors or npz')
  if not regular or not path.endswith(SUFFIXES):
    raise InputError(expected)
  with contextlib.ExitStack() as stack:
    with _damage(path):
      made = (_open_npz(path, stack, limit) if path.endswith('.npz')
              else _open_safetensors(path, stack))
    yield made


def _open_safetensors(path, stack) -> Tensors:
  file = stack.enter_context(safe_open(path, framework='np'))
  shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
  return Tensors(shapes, _checked(path, file.get_tensor), file.metadata() or {})


def _open_npz(path, stack, limit) -> Tensors:
  """Opens an npz file by the headers of its members: none is unpacked before it is read."""
  archive = stack.enter_context(zipfile.ZipFile(path))
  infos = {info.filename.removesuffix('.npy'): info for info in archive.infolist()}
  if len(infos) < len(archive.infolist()):
    raise ValueError('two members have one name')
  limit.check(members.unpacked(infos.values()), lambda text: InputError(f'got {path}; {text}'))
  shapes = {}
  for name, info in infos.items():
    with _damage(f'{path} with {name}'):
      shapes[name] = members.header(archive, info).shape
  return Tensors(shapes, _checked(path, lambda name: members.read(archive, infos[name])), {})


def save(path: str, tensors: dict[str, Array], metadata: dict[str, str] | None = None):
  """Writes tensors to a file atomically, in the format of its suffix.

  Any layout in memory is written by its values: transposed, strided, broadcast, big-endian. Only
  safetensors have metadata.

  Raises:
    InputError: a tensor is of a type that `opened` does not read from this format.
    SaveError: it can't be written; what was there before is whole.
  """
  arrays = {name: _plain(path, name, x) for name, x in tensors.items()}
  with storage.saving(path):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with storage.replacing(path) as aside:
    if path.endswith('.npz'):
      with zipfile.ZipFile(aside, 'w') as archive:  # np.savez takes no tensor of the name `file`.
        for name, x in arrays.items():
          with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
            np.lib.format.write_array(file, x, allow_pickle=False)
    else:
      _save_safetensors(arrays, aside, metadata)


def check_target(path: str):
  """Raises InputError unless a file can have this path."""
  if not path.endswith(SUFFIXES) or '\0' in path or os.path.isdir(path):
    raise InputError(f'got out={path}; expected the path of a file {" or ".join(SUFFIXES)}')


def flatten(tree) -> dict[str, Array]:
  """Flattens a tree of dicts to {path: leaf}, such as {'params/head/bias': ...}."""
  return {'/'.join(step.key for step in path): leaf
          for path, leaf in jax.tree.leaves_with_path(tree)}


def unflatten(tensors: dict[str, Array]) -> dict:
  """Returns the tree of dicts from the result of `flatten`.

  Raises:
    InputError: the name of a tensor is the folder of another.
  """
  tree = {}
  for name, leaf in sorted(tensors.items(), key=lambda item: item[0].count('/')):
    *folders, last = name.split('/')
    inner = tree
    for folder in folders:
      inner = inner.setdefault(folder, {})
      if not isinstance(inner, dict):
        raise InputError(f'got a tensor {name} in the place of another, {folder}; expected names '
                         'that are no folders of each other')
    inner[last] = leaf
  return tree


def _save_safetensors(arrays, path, metadata):
  try:
    save_file(arrays, path, metadata)
  except SafetensorError as error:
    number = re.search(r'os error (\d+)', str(error))
    if number is None:
      raise
    raise OSError(int(number[1]), os.strerror(int(number[1])), path) from error


def _plain(path, name, x) -> np.ndarray:
  """Returns an array as the formats want it: in C order and the machine's order of bytes."""
  x = np.asarray(x)
  # Types of ml_dtypes have no name in npz; of these, safetensors gives back bfloat16 only.
  foreign = x.dtype.kind == 'V' and (path.endswith('.npz') or x.dtype != jnp.bfloat16)
  if foreign or not _supported(x.dtype):
    raise InputError(f'got {name} in {x.dtype} for {path}; expected integers, or floats of at most '
                     '64 bits' + ('; .safetensors also takes bfloat16' if foreign else ''))
  return x.astype(x.dtype.newbyteorder('='), order='C', copy=False)


def _supported(dtype) -> bool:
  kinds = jnp.floating, jnp.integer, jnp.bool_
  return dtype.itemsize <= 8 and any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _checked(path, read):
  """Wraps `read` with a check that the array holds integers or floats."""

  def guarded(name):
    with _damage(f'{path} with {name}'):
      try:
        x = np.asarray(read(name))
      except (AttributeError, TypeError) as error:  # NumPy lacks the type.
        raise InputError(f'got {path} with {name} of an unknown type; expected integers or floats: '
                         f'{error}') from error
    if not _supported(x.dtype):
      raise InputError(f'got {path} with {name} in {x.dtype}; expected integers, or floats of at '
                       'most 64 bits')
    return x.astype(x.dtype.newbyteorder('='), copy=False)

  return guarded


@contextlib.contextmanager
def _damage(what):
  """Says of any error that a file is damaged: parsers of foreign bytes fail in many ways."""
  try:
    yield
  except InputError:
    raise
  except Exception as error:
    raise InputError(f'got a damaged {what}; expected a valid file of tensors: {error}') from error


def _is_pickle(path) -> bool:
  """Returns whether a file is a pickle, or PyTorch's zip archive of one."""
  with open(path, 'rb') as file:
    start, size = file.read(9), os.fstat(file.fileno()).st_size
  if start[:1] == b'\x80':  # Also a possible first byte of a safetensors header size.
    return start[8:] != b'{' or int.from_bytes(start[:8], 'little') > size
  try:
    with zipfile.ZipFile(path) as archive:
      return any(name.endswith('.pkl') for name in archive.namelist())
  except OSError:
    raise
  except Exception:  # It is no zip file, or a damaged one.
    return False
