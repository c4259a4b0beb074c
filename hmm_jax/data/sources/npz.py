"""User-supplied data set from an .npz file."""

from functools import partial

import numpy as np

from hmm_jax.data.arrays import read
from hmm_jax.registry import Source
from hmm_jax.types import Dataset, InputError

_NAMES = ('x_train', 'y_train', 'x', 'y', 'x_test', 'y_test', 'client', 'domain')
_INT32 = np.iinfo(np.int32)


def load(path: str) -> Dataset:
  """Loads arrays `x_train, y_train, x_test, y_test`, or `x, y`, and optional ones.

  With `x, y` a test split is optional; `client` and `domain` ([D] ints) are the owner
  and the domain of each training example, optional as well. Other arrays are ignored,
  and nothing is unpickled.

  Args:
    path: of the file. x is uint8 (images, kept), of another integer type (tokens,
      becomes int32) or floating (becomes float32); inputs [H, W] get a channel axis.

  Returns:
    A Dataset; `classes` is the largest label of both splits plus one.

  Raises:
    InputError: the file cannot be read, or its arrays do not fit together.
  """
  arrays = read(path, _NAMES, partial(_error, path))
  named_train = 'x_train' in arrays or 'y_train' in arrays
  x_train, y_train = _split(path, arrays, *(_NAMES[:2] if named_train else _NAMES[2:4]))
  x_test, y_test = x_train[:0].copy(), y_train[:0].copy()
  if named_train or 'x_test' in arrays or 'y_test' in arrays:
    x_test, y_test = _split(path, arrays, 'x_test', 'y_test')
  if (x_train.dtype, x_train.shape[1:]) != (x_test.dtype, x_test.shape[1:]):
    raise _error(path, f'test inputs are {x_test.dtype} {x_test.shape[1:]}, '
                       f'expected {x_train.dtype} {x_train.shape[1:]} as in training')
  client, domain = (_owners(path, arrays, name, len(y_train)) for name in ('client', 'domain'))
  classes = max(y_train.max(), y_test.max(initial=0)) + 1
  return Dataset(f'npz:{path}', x_train, y_train, x_test, y_test, int(classes), client, domain)


def _error(path, text):
  return InputError(f'got dataset=npz:{path}; {text}')


def _split(path, arrays, x_name, y_name):
  """Returns the inputs [D, ...] and the labels [D] int32 of a split."""
  if x_name not in arrays or y_name not in arrays:
    raise _error(path, f'expected arrays {x_name} and {y_name}, it has '
                       f'{", ".join(arrays) or "none of " + ", ".join(_NAMES)}')
  x = _inputs(path, x_name, arrays[x_name])
  y = arrays[y_name]
  if y.dtype.kind not in 'iu' or y.shape != x.shape[:1]:
    raise _error(path, f'{y_name} is {y.dtype} {y.shape}, expected integers {x.shape[:1]}, '
                       f'one for each example of {x_name}')
  if y.min() < 0 or y.max() >= _INT32.max:
    raise _error(path, f'{y_name} goes from {y.min()} to {y.max()}, expected labels from 0')
  return x, y.astype(np.int32)


def _inputs(path, name, x):
  """Returns x as uint8, int32 or float32, images with a channel axis."""
  if x.dtype.kind not in 'uif' or x.ndim < 2 or not x.size:
    raise _error(path, f'{name} is {x.dtype} {x.shape}, expected numbers '
                       '[examples, ...] and at least one example')
  if x.dtype.kind == 'f':
    with np.errstate(over='ignore'):  # overflow to infinity is refused below
      x = x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
      raise _error(path, f'{name} holds values that are not finite in float32')
  elif x.dtype != np.uint8:
    if x.min() < _INT32.min or x.max() > _INT32.max:
      raise _error(path, f'{name} goes from {x.min()} to {x.max()}, expected int32 values')
    x = x.astype(np.int32, copy=False)
  return x[..., None] if x.ndim == 3 else x


def _owners(path, arrays, name, rows):
  owners = arrays.get(name)
  if owners is not None and (owners.dtype.kind not in 'iu' or owners.shape != (rows,)):
    raise _error(path, f'{name} is {owners.dtype} {owners.shape}, expected integers ({rows},), '
                       'one for each training example')
  return owners


SOURCE = Source(
    'npz', lambda path, settings, data_dir: load(path), path=True,
    summary='an .npz file with x_train, y_train, x_test, y_test, or x, y; optional: client, domain')
