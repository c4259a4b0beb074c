"""Files of named tensors: safetensors and npz. Pickles are refused, as they can run code."""

from collections.abc import Callable, Generator
import contextlib
import os
import re
import stat
import tempfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hmm_jax.types import Array, InputError

SUFFIXES = ('.safetensors', '.npz')


class Tensors:
  """The tensors of one file, read lazily.

  shapes: {name: shape}.
  read:   (name) -> array; raises InputError if it is damaged, or of neither integers nor floats.
  """

  def __init__(self, shapes: dict[str, tuple[int, ...]], read: Callable[[str], Array]):
    self.shapes, self.read = shapes, read


@contextlib.contextmanager
def opened(path: str) -> Generator[Tensors]:
  """Opens a file of tensors.

  Raises:
    InputError: it is absent, damaged, a pickle, or of an unsupported format.
  """
  expected = f'got {path}; expected a file {" or ".join(SUFFIXES)}, or the folder of a run'
  try:
    pickled = _is_pickle(path)
  except OSError as error:
    raise InputError(f'{expected}: {error.strerror}') from error
  if pickled:
    raise InputError(f'got {path}, a pickle, which can run any code when it is read; expected '
                     'safetensors or npz')
  if not path.endswith(SUFFIXES):
    raise InputError(expected)
  try:
    if path.endswith('.npz'):
      with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
        yield Tensors({name: np.shape(arrays[name]) for name in arrays.files},
                      _checked(path, arrays.__getitem__))
    else:
      with safe_open(path, framework='np') as file:
        yield Tensors({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()},  # noqa: SIM118
                      _checked(path, file.get_tensor))
  except (SafetensorError, OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f'got a damaged {path}; expected a valid file of tensors: {error}') from error


def save(path: str, tensors: dict[str, Array]):
  """Writes tensors to a file atomically, in the format of its suffix.

  Any layout in memory is written by its values: transposed, strided, broadcast, big-endian.

  Raises:
    InputError: a tensor is of a type that `opened` does not read from this format.
    OSError: it can't be written; what was there before is whole.
  """
  arrays = {name: _plain(path, name, x) for name, x in tensors.items()}
  with replacing(path) as aside:
    if path.endswith('.npz'):
      with zipfile.ZipFile(aside, 'w') as archive:  # np.savez takes no tensor of the name `file`.
        for name, x in arrays.items():
          with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
            np.lib.format.write_array(file, x, allow_pickle=False)
    else:
      _save_safetensors(arrays, aside)


@contextlib.contextmanager
def replacing(path: str) -> Generator[str]:
  """Yields a path to write a file to, which then takes the place of `path`.

  It lies in a new folder, of a name that nobody can guess and that only its owner may enter: no
  link is followed. If anything fails, the old file stays, and nothing of the new one. Its mode is
  the old file's, or that of any new file.
  """
  path = os.path.abspath(path)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with tempfile.TemporaryDirectory(dir=os.path.dirname(path), prefix='.') as folder:
    aside = os.path.join(folder, os.path.basename(path))
    with open(aside, 'xb') as file:
      mode = os.fstat(file.fileno()).st_mode
    if os.path.isfile(path) and not os.path.islink(path):
      mode = os.stat(path).st_mode
    yield aside
    os.chmod(aside, stat.S_IMODE(mode))  # The writer of safetensors makes files of mode 0600.
    with open(aside, 'rb') as file:
      os.fsync(file.fileno())
    os.replace(aside, path)


def flatten(tree) -> dict[str, Array]:
  """Flattens a tree of dicts to {path: leaf}, such as {'params/head/bias': ...}."""
  return {'/'.join(step.key for step in path): leaf
          for path, leaf in jax.tree.leaves_with_path(tree)}


def unflatten(tensors: dict[str, Array]) -> dict:
  """Returns the tree of dicts from the result of `flatten`."""
  tree = {}
  for name, leaf in tensors.items():
    *folders, last = name.split('/')
    inner = tree
    for folder in folders:
      inner = inner.setdefault(folder, {})
    inner[last] = leaf
  return tree


def _save_safetensors(arrays, path):
  try:
    save_file(arrays, path)
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
    try:
      x = np.asarray(read(name))
    except (AttributeError, TypeError) as error:  # NumPy lacks the type.
      raise InputError(f'got {path} with {name} of an unknown type; expected integers or floats: '
                       f'{error}') from error
    if not _supported(x.dtype):
      raise InputError(f'got {path} with {name} in {x.dtype}; expected integers, or floats of at '
                       'most 64 bits')
    return x

  return guarded


def _is_pickle(path) -> bool:
  """Returns whether a file is a pickle, or PyTorch's zip archive of one."""
  with open(path, 'rb') as file:
    start, size = file.read(9), os.fstat(file.fileno()).st_size
  if start[:1] == b'\x80':  # Also a possible first byte of a safetensors header size.
    return start[8:] != b'{' or int.from_bytes(start[:8], 'little') > size
  try:
    with zipfile.ZipFile(path) as archive:
      return any(name.endswith('.pkl') for name in archive.namelist())
  except zipfile.BadZipFile:
    return False
