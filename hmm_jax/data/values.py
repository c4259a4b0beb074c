"""What a data set may hold: one rule for every source, so that no value changes unsaid.

Files hold more types than a `Dataset`. Integers of a file become int32 where all of them fit,
floats become float32, which is said where it rounds, labels become classes with a name each. All
else, such as booleans, complex numbers and objects, and floats as labels, is refused.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hmm_jax.types import Dataset, InputError

# Makes the error for what is wrong with a file: (text) -> InputError.
Refusal = Callable[[str], InputError]

_INT32 = np.iinfo(np.int32)
_SHOWN, _LONG = 4, 20  # names in a list, and characters of a name


def classes(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, tuple]:
  """Numbers the distinct labels of both splits from 0, in their order.

  Args:
    train: [D] integers, or strings.
    test: the same of the test split, where some classes may not be in training.

  Returns:
    Both as int32, C, and the names of the classes: () where the labels are their numbers.
  """
  known = sorted({*np.unique(train).tolist(), *np.unique(test).tolist()})
  names, numbers = (tuple(map(str, of)) for of in (known, range(len(known))))
  return (number(train, known), number(test, known), len(known),
          () if names == numbers else names)


def number(labels: np.ndarray, known: Sequence) -> np.ndarray:
  """Returns the index of each label [D] among those known, as int32; -1 where it is none."""
  place = {label: i for i, label in enumerate(known)}
  distinct, where = np.unique(labels, return_inverse=True)
  return np.array([place.get(label, -1) for label in distinct.tolist()], np.int32)[where]


def names(dataset: Dataset) -> tuple[str, ...]:
  """Returns what files call the classes of a data set: their names, or their numbers."""
  return dataset.names or tuple(map(str, range(dataset.classes)))


def listed(names: Sequence[str]) -> str:
  """Says how many names there are and which, in a few words."""
  shown = [repr(name if len(name) <= _LONG else f'{name[:_LONG]}...') for name in names]
  if len(shown) > _SHOWN:
    shown[_SHOWN - 1:-1] = ['...']
  return f'{len(names):,}: {", ".join(shown)}'


def labels(y: np.ndarray, name: str, rows: int, refusal: Refusal) -> np.ndarray:
  """Returns labels of a file if they are integers of at least 0, or strings, one per example."""
  if y.dtype.kind not in 'iuU' or y.shape != (rows,):
    raise refusal(f'{name} is {y.dtype} {y.shape}, expected integers ({rows},) or strings, one '
                  'for each example')
  # -1 would often mean that there is no label, and not a class.
  if y.dtype.kind == 'i' and rows and y.min() < 0:
    raise refusal(f'{name} goes from {y.min()} to {y.max()}, expected labels from 0')
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
  if not _finite(x):
    raise refusal(f'{name} holds values that are not finite in float32')
  return x


def owners(arrays: dict[str, np.ndarray], name: str, rows: int,
           refusal: Refusal) -> np.ndarray | None:
  """Returns an optional array of a file that has an integer for each training example."""
  found = arrays.get(name)
  if found is not None and (found.dtype.kind not in 'iu' or found.shape != (rows,)):
    raise refusal(f'{name} is {found.dtype} {found.shape}, expected integers ({rows},), one for '
                  'each training example')
  return found


def _finite(x):
  # NaN is the least and the largest number of any array that holds it.
  return not x.size or np.isfinite([x.min(), x.max()]).all()
