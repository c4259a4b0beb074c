"""Data sets from what people have in memory: arrays, data frames, data sets of other libraries."""

from collections.abc import Callable, Sequence
import inspect
import textwrap
from types import SimpleNamespace
from typing import Any

import numpy as np

from hmm_jax.data import columns, values
from hmm_jax.data.sources import hf
from hmm_jax.registry import Source, Stand
from hmm_jax.types import Dataset, InputError


def dataset(x: Any, y: Any = None, *, client: Any = None, domain: Any = None, test: Any = None,
            inputs: Sequence[str] = (), split: str = '', name: str = 'mine') -> Dataset:
  """Makes a data set of data in memory, for `hmm_jax.run(config, workdir, data=...)`.

  Args:
    x: inputs [D, ...], as a NumPy array, or lists; or a table: a pandas DataFrame, or a set of
      Hugging Face's `datasets`; or a torch Dataset or another iterable, of pairs (x, y).
      `hmm_jax.dataset` also takes a config, and loads its data set.
    y: labels, targets or tokens [D] or [D, C], numbers or strings; of a table, names of columns.
      Not given for pairs.
    client: the natural owner of each training example, [D] numbers or strings; of a table, the
      name of a column.
    domain: the domain of each training example, [D] whole numbers.
    test: a test split: a pair (x, y), or what x may be.
    inputs: the columns of a table that are inputs; () for all others.
    split: the column of a table that says train, validation or test.
    name: what it is called in tables and folders.

  Raises:
    InputError: it is none of these, or its parts don't fit together.
  """
  refusal = lambda text: InputError(f'got data {name!r}; {text}')
  if hasattr(x, 'column_names') and hasattr(x, 'features'):
    names = lambda text: text if isinstance(text, str) else ','.join(text or ())
    roles = SimpleNamespace(label=names(y), inputs=names(inputs), client=client or '', size='')
    return hf.dataset(name, x, test, roles, refusal)
  if hasattr(x, 'columns'):
    roles = columns.Roles([y] if isinstance(y, str) else list(y or ()), client or '', split, inputs,
                          {'target': 'y', 'client': 'client', 'split': 'split', 'inputs': 'inputs'})
    made = columns.dataset(name, _table(x, refusal), roles, refusal)
    if test is None:
      return made
    other = columns.dataset(name, _table(test, refusal), roles._replace(client='', split=''),
                            refusal)
    return made._replace(x_test=other.x_train, y_test=other.y_train)
  x_train, y_train = _arrays(x, y, 'x', refusal)
  x_test, y_test = x_train[:0], y_train[:0]
  if test is not None:
    x_test, y_test = _arrays(*(test if isinstance(test, tuple) else (test, None)), 'test', refusal)
  number, owners = (None, ()) if client is None else columns.numbered_owners(
      _aligned(client, 'client', len(y_train), refusal))
  return Dataset(
      name, x_train, y_train, x_test, y_test, 0, number,
      None if domain is None else _aligned(domain, 'domain', len(y_train), refusal), owners=owners)


def _table(frame, refusal) -> dict[str, np.ndarray]:
  """Returns the columns of a data frame."""
  return {str(name): columns.plain(np.asarray(frame[name]), f'column {name!r}', refusal)
          for name in frame.columns}


def _arrays(x, y, what, refusal) -> tuple[np.ndarray, np.ndarray]:
  """Returns inputs and labels of arrays, or of pairs."""
  if y is None:
    x, y = _unzipped(x, what, refusal)
  x, y = (columns.plain(_array(part, name, refusal), name, refusal)
          for part, name in ((x, what), (y, 'y')))
  return values.inputs(x, what, refusal), values.targets(y, 'y', len(x), refusal)


def _unzipped(pairs: Any, what: str, refusal: Callable) -> tuple[list, list]:
  if isinstance(pairs, np.ndarray):
    raise refusal(f'expected y beside the array {what}')
  items = (pairs[i] for i in range(len(pairs))) if hasattr(pairs, '__getitem__') and hasattr(
      pairs, '__len__') else pairs
  x, y = [], []
  try:
    for one, label in items:
      x.append(np.asarray(one))
      y.append(np.asarray(label))
  except (TypeError, ValueError) as error:
    raise refusal(f'expected arrays {what} and y, a table, or pairs (x, y) in {what}') from error
  if not x:
    raise refusal(f'{what} holds no examples')
  return x, y


def _array(x, name, refusal) -> np.ndarray:
  try:
    return np.asarray(x)
  except ValueError as error:
    raise refusal(f'{name} has parts of several shapes; expected one') from error


def _aligned(owner, name, count, refusal) -> np.ndarray:
  owner = columns.plain(_array(owner, name, refusal), name, refusal)
  if owner.shape != (count,) or owner.dtype.kind not in 'iuU':
    raise refusal(f'{name} is {owner.dtype} {owner.shape}; expected whole numbers or strings '
                  f'({count},), one for each training example')
  return owner


def _returned(reference: str, function: Callable) -> Source:
  """Returns the source of what a function returns: a Dataset, or what `dataset` takes."""

  def load(path, settings, data_dir):
    try:
      made = function()
    except InputError:
      raise
    except Exception as error:  # It is the user's own code.
      raise InputError(f'got dataset={reference}, which fails with {type(error).__name__}: '
                       f'{textwrap.shorten(str(error), 200)}; expected {FUNCTION.words}') from error
    if isinstance(made, Dataset):
      return made
    return dataset(*(made if isinstance(made, tuple) else (made,)), name=reference)

  return Source(reference.rpartition(':')[2], load)


FUNCTION = Stand('a function without arguments that returns a Dataset, or inputs and labels (x, y)',
                 lambda value: inspect.isfunction(value), _returned)
