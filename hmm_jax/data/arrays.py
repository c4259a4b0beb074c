"""Arrays of .npz files: alternative labels of a data set, and vectors by example id."""

from collections.abc import Callable, Collection, Sequence
import os
import textwrap
import zipfile
import zlib

import numpy as np

from hmm_jax.data import values
from hmm_jax.types import InputError

# Raised by NumPy and zipfile for a file that is absent, truncated or altered.
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, MemoryError, OverflowError, SyntaxError,
           zipfile.BadZipFile, zlib.error)


def labels(path: str, rows: int, names: Sequence[str]) -> np.ndarray:
  """Loads alternative labels of the training examples: `y` in the file, as classes [D] int32.

  Args:
    path: of the file; other arrays are ignored.
    rows: D, number of training examples as loaded.
    names: of the C classes, of which the labels are.

  Raises:
    InputError: the file cannot be read, or its labels don't fit the data set.
  """
  refusal = lambda text: InputError(f'got corrupt.kind=labels:{path}; {text}')
  y = read(path, ('y',), refusal).get('y')
  if y is None:
    raise refusal('expected an array y, it has none')
  y = values.labels(y, 'y', rows, refusal).astype(str)
  found = values.number(y, names)
  if (unknown := found < 0).any():
    raise refusal(f'y has the label {str(y[unknown][0])!r:.40}, expected those of the data set, '
                  f'{values.listed(names)}')
  return found


def vectors(path: str, names: Sequence[str]) -> np.ndarray:
  """Loads the vectors `x` ([n, F] numbers) of given ids `id` ([n] integers or strings).

  Args:
    path: of the file; other arrays are ignored.
    names: ids of the vectors to return, in this order; repeats are allowed.

  Returns:
    float32 [len(names), F].

  Raises:
    InputError: the file cannot be read, its arrays do not fit together, or an id is missing.
  """
  refusal = lambda text: InputError(f'got crisismmd.vectors={path}; {text}')
  arrays = read(path, ('id', 'x'), refusal)
  if set(arrays) != {'id', 'x'}:
    raise refusal(f'expected arrays id and x, it has {", ".join(arrays) or "neither"}')
  known, x = arrays['id'], arrays['x']
  if known.dtype.kind not in 'iuU' or x.dtype.kind not in 'iuf' or (
      x.ndim != 2 or known.shape != x.shape[:1]):
    raise refusal(f'id is {known.dtype} {known.shape} and x {x.dtype} {x.shape}, expected integers '
                  'or strings [n] and numbers [n, F]')
  place = {name: i for i, name in enumerate(known.astype(str).tolist())}
  if missing := [name for name in dict.fromkeys(names) if name not in place]:
    raise refusal(f'expected a vector for each tweet, {len(missing)} have none, the first is '
                  f'{missing[0]}')
  return values.floats(x[[place[name] for name in names]], 'x', refusal)


def read(path: str, names: Collection[str], refusal: Callable[[str], Exception]) -> dict:
  """Reads the named arrays of a file, or raises refusal(reason)."""
  try:
    with open(os.path.expanduser(path), 'rb') as file:  # np.load does not close a damaged one
      arrays = np.load(file, allow_pickle=False)
      if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError('it is a bare .npy array')
      return {name: arrays[name] for name in names if name in arrays}
  except _DAMAGE as error:
    reason = textwrap.shorten(str(error) or type(error).__name__, 200)
    raise refusal(f'expected a readable .npz file of plain arrays: {reason}') from error
