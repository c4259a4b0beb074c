"""Arrays of .npz files: alternative labels of a data set, and vectors by example id."""

from collections.abc import Collection, Sequence
import zipfile

import numpy as np
from numpy.lib import format as npy

from hmm_jax.data import files, members, numbering, values
from hmm_jax.types import InputError


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
  found = numbering.number(y, names)
  if (unknown := found < 0).any():
    raise refusal(f'y has the label {str(y[unknown][0])!r:.40}, expected those of the data set, '
                  f'{numbering.listed(names)}')
  return found


def vectors(path: str, names: Sequence[str],
            limit: files.Limit = files.DEFAULT_LIMIT) -> np.ndarray:
  """Loads the vectors `x` ([n, F] numbers) of given ids `id` ([n] integers or strings).

  Args:
    path: of the file; other arrays are ignored.
    names: ids of the vectors to return, in this order; repeats are allowed.
    limit: what the arrays may unpack to.

  Returns:
    float32 [len(names), F].

  Raises:
    InputError: the file cannot be read, its arrays do not fit together, or an id is missing.
  """
  refusal = lambda text: InputError(f'got crisismmd.vectors={path}; {text}')
  arrays = read(path, ('id', 'x'), refusal, limit)
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


def read(path: str, names: Collection[str], refusal: files.Refusal,
         limit: files.Limit = files.DEFAULT_LIMIT) -> dict[str, np.ndarray]:
  """Reads the named arrays of a file, or raises refusal(reason). Nothing is ever unpickled."""
  with files.reading('a readable .npz file of plain arrays', refusal), open(
      files.ordinary(path), 'rb') as file:
    if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
      raise ValueError('it is a bare .npy array')
    with zipfile.ZipFile(file) as archive:
      held = archive.namelist()
      wanted = {name: archive.getinfo(f'{name}.npy') for name in names if f'{name}.npy' in held}
      limit.check(members.unpacked(wanted.values()), refusal)
      return {name: members.read(archive, info) for name, info in wanted.items()}
