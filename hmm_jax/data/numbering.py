"""Labels as numbers of classes, and the names that files have for the classes."""

from collections.abc import Sequence

import numpy as np

from hmm_jax.types import Dataset, InputError

MOST = 1_000_000  # Beyond, labels are surely something else.
_SHOWN, _LONG = 4, 20  # names in a list, and characters of a name


def numbered(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, tuple]:
  """Numbers the distinct labels of both splits from 0, in their order.

  Args:
    train: [D] integers, or strings.
    test: the same of the test split, where some classes may not be in training.

  Returns:
    Both as int32, C, and the names of the classes: () where the labels are their numbers.
  """
  known = sorted({*np.unique(train).tolist(), *np.unique(test).tolist()})
  names, numbers = (tuple(map(shown, of)) for of in (known, range(len(known))))
  return (number(train, known), number(test, known), len(known),
          () if names == numbers else names)


def number(labels: np.ndarray, known: Sequence) -> np.ndarray:
  """Returns the index of each label [D] among those known, as int32; -1 where it is none."""
  place = {label: i for i, label in enumerate(known)}
  distinct, where = np.unique(labels, return_inverse=True)
  return np.array([place.get(label, -1) for label in distinct.tolist()], np.int32)[where]


def shown(name: object) -> str:
  """Returns a name as a line that any file can hold: what can't be printed is escaped."""
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in str(name))


def names(dataset: Dataset) -> tuple[str, ...]:
  """Returns what files call the classes of a data set: their names, or their numbers."""
  return dataset.names or tuple(map(str, range(dataset.classes)))


def listed(names: Sequence[str]) -> str:
  """Says how many names there are and which, in a few words."""
  shown = [repr(name if len(name) <= _LONG else f'{name[:_LONG]}...') for name in names]
  if len(shown) > _SHOWN:
    shown[_SHOWN - 1:-1] = ['...']
  return f'{len(names):,}: {", ".join(shown)}'


def compact(y: np.ndarray) -> np.ndarray:
  """Returns classes [D] as int32; other labels stay."""
  return y.astype(np.int32, copy=False) if y.ndim == 1 else y


def checked(y: np.ndarray, count: int, of: str) -> np.ndarray:
  """Returns labels as int32 if they are integers from 0 to `count` - 1."""
  dtype = getattr(y, 'dtype', np.dtype(object))
  if not np.issubdtype(dtype, np.integer):
    raise InputError(f'got labels in {dtype} in the {of}; expected integers, the classes')
  if y.ndim != 1:
    raise InputError(f'got labels of shape {y.shape} in the {of}; expected one for each example')
  if len(y) and not 0 <= y.min() <= y.max() < count:
    raise InputError(f'got labels from {y.min()} to {y.max()} in the {of}; expected from 0 to '
                     f'{count - 1}, below classes={count}')
  return y.astype(np.int32, copy=False)
