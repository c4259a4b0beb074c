"""What a data set may hold: one rule for every source, so that no value changes unsaid.

Files hold more types than a `Dataset`. Integers of a file become int32 where all of them fit,
floats become float32, which is said where it rounds, labels become classes with a name each. All
else, such as booleans, complex numbers and objects, and floats as labels, is refused.
"""

import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax.data import numbering
from hmm_jax.data.files import Refusal
from hmm_jax.types import Dataset, InputError

_INPUT_TYPES = tuple(map(np.dtype, (
    np.uint8, np.int32, np.float32, np.float16, jnp.bfloat16)))
_INT32 = np.iinfo(np.int32)
_CHANNELS = (1, 3, 4)  # of a picture: gray, color, color with opacity
_LEAST_SHARE = 1e-6
_MOST_COUNTS = 2**28  # clients x classes, 2 GiB


def labels(y: np.ndarray, name: str, rows: int, refusal: Refusal) -> np.ndarray:
  """Returns labels of a file if they are integers of at least 0, or strings, one per example."""
  if y.dtype.kind not in 'iuU' or y.shape != (rows,):
    raise refusal(f'{name} is {y.dtype} {y.shape}, expected integers ({rows},) or strings, one '
                  'for each example')
  # -1 would often mean that there is no label, and not a class.
  if y.dtype.kind == 'i' and rows and y.min() < 0:
    raise refusal(f'{name} goes from {y.min()} to {y.max()}, expected labels from 0')
  return y


def targets(y: np.ndarray, name: str, rows: int, refusal: Refusal) -> np.ndarray:
  """Returns what a file has to learn of each example, for a task to read: [D], or [D, C] numbers.

  Numbers, or strings, which are class names.
  """
  if y.dtype.kind not in 'biufU' or y.shape[:1] != (rows,) or y.ndim > 2 or (
      y.dtype.kind == 'U' and y.ndim > 1) or 0 in y.shape[1:]:
    raise refusal(f'{name} is {y.dtype} {y.shape}, expected numbers or strings ({rows},), one for '
                  f'each example, or numbers ({rows}, C)')
  return y


def inputs(x: np.ndarray, name: str, refusal: Refusal) -> np.ndarray:
  """Returns inputs of a file as uint8, int32 or float32, images with a channel axis."""
  if x.dtype.kind not in 'uif' or x.ndim < 2 or not x.size:
    raise refusal(f'{name} is {x.dtype} {x.shape}, expected numbers [examples, ...] and at least '
                  'one example')
  if x.dtype.kind == 'f':
    x = floats(x, name, refusal)
  elif x.dtype != np.uint8:
    if x.min() < _INT32.min or x.max() > _INT32.max:
      raise refusal(f'{name} goes from {x.min()} to {x.max()}, expected int32 values')
    x = x.astype(np.int32, copy=False)
  return x[..., None] if x.ndim == 3 else x


def floats(x: np.ndarray, name: str, refusal: Refusal) -> np.ndarray:
  """Returns numbers of a file as float32, all of them finite."""
  with np.errstate(over='ignore'):  # overflow to infinity is refused below
    x = x.astype(np.float32, copy=False)
  if not finite(x):
    raise refusal(f'{name} holds values that are not finite in float32')
  return x


def owners(arrays: dict[str, np.ndarray], name: str, rows: int,
           refusal: Refusal) -> np.ndarray | None:
  """Returns an optional array of a file that has an integer for each training example."""
  found = arrays.get(name)
  if found is not None and (_dtype(found).kind not in 'iu' or found.shape != (rows,)):
    raise refusal(f'{name} is {_dtype(found)} {np.shape(found)}, expected integers ({rows},), one '
                  'for each training example')
  return found


def finite(x: np.ndarray) -> bool:
  """Tells whether all numbers are finite."""
  # NaN is the least and the largest number of any array that holds it.
  return not x.size or all(np.isfinite(edge) for edge in (x.min(), x.max()))


def check(dataset: Dataset):
  """Checks that a data set holds what `Dataset` says, whoever made it.

  Raises:
    InputError: it would have to be cast, is empty or not finite, or does not fit together.
  """
  name, count = dataset.name, dataset.classes
  if not isinstance(count, int | np.integer) or not 1 <= count <= numbering.MOST:
    raise InputError(f'got classes={count!r} in {name}; expected a whole number from 1 to '
                     f'{numbering.MOST:,}')
  train, test = jax.tree.leaves(dataset.x_train), jax.tree.leaves(dataset.x_test)
  for split, inputs, y in (('train', train, dataset.y_train), ('test', test, dataset.y_test)):
    _check_split(inputs, y, count, f'{split} split of {name}')
  kinds = [[(x.dtype, x.shape[1:]) for x in split] for split in (train, test)]
  if kinds[0] != kinds[1]:
    said = [', '.join(f'{dtype} {shape}' for dtype, shape in kind) for kind in kinds]
    raise InputError(f'got inputs of {said[1]} in the test split of {name}; expected {said[0]}, '
                     'as in training')
  if not len(dataset.y_train):
    raise InputError(f'got 0 examples in the train split of {name}; expected at least 1')
  if dataset.y_train.ndim == 1 and len({*dataset.names}) not in (0, count):
    raise InputError(f'got {len({*dataset.names})} names of the {count} classes of {name}; '
                     'expected one for each, or none')
  for field in ('client', 'domain', 'relabeled'):
    if getattr(dataset, field) is not None:
      owners(dataset._asdict(), field, len(dataset.y_train),
             lambda text: InputError(f'got the data set {name}; {text}'))
  if dataset.relabeled is not None:
    numbering.checked(dataset.relabeled, count, f'relabeled of {name}')


def check_share(key: str, share: float):
  """Refuses shares above 0 that are so small that they are of nothing, in any data set."""
  if 0 < share < _LEAST_SHARE:
    raise InputError(f'got {key}={share}; expected 0, or at least {_LEAST_SHARE}')


def check_counts(clients: int, groups: int):
  """Checks that a table of clients and classes, or other groups of examples, is of a fair size."""
  if clients * groups > _MOST_COUNTS:
    raise InputError(f'got clients={clients} with {groups:,} classes; expected a product of at '
                     f'most {_MOST_COUNTS:,}')


def _check_labels(y, count, of):
  """Checks classes [D], labels [D, C] uint8, targets [D, C] float32 or tokens [D, T] int32."""
  dtype = _dtype(y)
  if dtype == np.float32 and y.ndim == 2:
    if y.shape[1] != count:
      raise InputError(f'got {y.shape[1]} targets in the {of}; expected classes={count}')
    if not finite(y):
      raise InputError(f'got NaN or infinity among the targets in the {of}; expected finite '
                       'numbers')
  elif dtype == np.uint8 and y.ndim == 2:
    if y.shape[1] != count or y.max(initial=0) > 1:
      raise InputError(f'got labels up to {y.max(initial=0)} of shape {y.shape} in the {of}; '
                       f'expected 0 or 1 for each of classes={count}')
  else:
    numbering.checked(y.ravel() if dtype == np.int32 and y.ndim == 2 else y, count, of)


def _check_split(inputs, y, count, of):
  _check_labels(y, count, of)
  for x in inputs:
    if _dtype(x) not in _INPUT_TYPES:
      raise InputError(f'got inputs in {_dtype(x)} in the {of}; expected '
                       f'{", ".join(map(str, _INPUT_TYPES))}')
    if len(x) != len(y):
      raise InputError(f'got {len(x)} inputs and {len(y)} labels in the {of}; expected as many')
    if 0 in x.shape[1:]:
      raise InputError(f'got inputs of shape {x.shape[1:]} in the {of}; expected no axis of 0')
    if channels_first(x.shape):
      raise InputError(f'got images of shape {x.shape[1:]} in the {of}; expected channels last, '
                       'such as x.transpose(0, 2, 3, 1)')
    if not finite(x):
      raise InputError(f'got NaN or infinity among the inputs in the {of}; expected finite numbers')


def channels_first(shape: tuple[int, ...]) -> bool:
  """Tells whether inputs are surely pictures [D, C, H, W].

  Other arrays [D, H, W, C] may begin with a 1, 3 or 4, too: features of 4 x 4 pixels, or a signal
  of 1 x 128 steps with 9 channels. But these are small, or long and narrow; pictures are neither.
  """
  if len(shape) != 4 or shape[1] not in _CHANNELS or shape[3] in _CHANNELS:
    return False
  short, long = sorted(shape[2:])
  return short > max(_CHANNELS) and long <= 4 * short


def _dtype(x):
  return getattr(x, 'dtype', np.dtype(object))
