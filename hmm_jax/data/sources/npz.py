"""User-supplied data set from an .npz file."""

from hmm_jax.data import files, values
from hmm_jax.data.arrays import read
from hmm_jax.registry import Source
from hmm_jax.types import Dataset, InputError

_NAMES = ('x_train', 'y_train', 'x', 'y', 'x_test', 'y_test', 'client', 'domain')


def load(path: str, *, unpack_limit: float = 0.0) -> Dataset:
  """Loads arrays `x_train, y_train, x_test, y_test`, or `x, y`, and optional ones.

  With `x, y` a test split is optional; `client` and `domain` ([D] ints) are the owner
  and the domain of each training example, optional as well. Other arrays are ignored,
  and nothing is unpickled.

  Args:
    path: of the file. x is uint8 (images, kept), of another integer type (tokens,
      becomes int32) or floating (becomes float32); inputs [H, W] get a channel axis.
      y is numbers or strings [D], or numbers [D, C].
    unpack_limit: GiB that compressed arrays may unpack to; 0: a quarter of the memory.

  Returns:
    A Dataset with y as in the file; a task makes of it what it learns.

  Raises:
    InputError: the file cannot be read, or its arrays do not fit together.
  """
  refusal = lambda text: InputError(f'got dataset=npz:{path}; {text}')
  arrays = read(path, _NAMES, refusal, files.Limit(unpack_limit, 'npz.unpack_limit'))
  named_train = 'x_train' in arrays or 'y_train' in arrays
  x_train, y_train = _split(refusal, arrays, *(_NAMES[:2] if named_train else _NAMES[2:4]))
  x_test, y_test = x_train[:0].copy(), y_train[:0].copy()
  if named_train or 'x_test' in arrays or 'y_test' in arrays:
    x_test, y_test = _split(refusal, arrays, 'x_test', 'y_test')
  if (x_train.dtype, x_train.shape[1:]) != (x_test.dtype, x_test.shape[1:]):
    raise refusal(f'test inputs are {x_test.dtype} {x_test.shape[1:]}, '
                  f'expected {x_train.dtype} {x_train.shape[1:]} as in training')
  if (y_train.dtype.kind == 'U') != (y_test.dtype.kind == 'U'):
    raise refusal(f'labels are {y_train.dtype} in training and {y_test.dtype} in test, expected '
                  'numbers in both or strings in both')
  if y_train.shape[1:] != y_test.shape[1:]:
    raise refusal(f'y is {y_train.shape} in training and {y_test.shape} in test, expected as many '
                  'numbers for each example')
  client, domain = (values.owners(arrays, name, len(y_train), refusal)
                    for name in ('client', 'domain'))
  return Dataset(f'npz:{path}', x_train, y_train, x_test, y_test, 0, client, domain,
                 facts=_facts(arrays))


def _facts(arrays):
  """Says what types of floats were rounded to float32, if any."""
  wide = {str(arrays[name].dtype) for name in _NAMES
          if name.startswith('x') and name in arrays and arrays[name].dtype.kind == 'f'
          and arrays[name].itemsize > 4}
  return (('inputs', f'float32, rounded from {", ".join(sorted(wide))}'),) if wide else ()


def _split(refusal, arrays, x_name, y_name):
  """Returns the inputs [D, ...] and the labels [D] of a split."""
  if x_name not in arrays or y_name not in arrays:
    raise refusal(f'expected arrays {x_name} and {y_name}, it has '
                  f'{", ".join(arrays) or "none of " + ", ".join(_NAMES)}')
  x = values.inputs(arrays[x_name], x_name, refusal)
  return x, values.targets(arrays[y_name], y_name, len(x), refusal)


SOURCE = Source(
    'npz', lambda path, settings, data_dir: load(path, **settings), files.UNPACK_LIMIT, path=True,
    summary='an .npz file with x_train, y_train, x_test, y_test, or x, y (labels: strings or '
    'numbers, of one target or several); optional: client, domain')
