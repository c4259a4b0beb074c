"""Data sets from what people have in memory: arrays, data frames, data sets of other libraries."""

from collections.abc import Callable, Sequence
import inspect
import textwrap
from types import SimpleNamespace
from typing import Any

import numpy as np

from hmm_jax.data import columns, frames, values
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
    y: labels, targets or tokens [D] or [D, C], numbers or strings; of a table, names of columns,
      and of a DataFrame also values beside it, such as a Series. Not given for pairs.
    client: the natural owner of each training example, [D] numbers or strings; of a table, the
      name of a column, and of a DataFrame also values beside it.
    domain: the domain of each training example, [D] whole numbers.
    test: a test split: a pair (x, y), or what x may be.
    inputs: the columns of a table that are inputs; () for all others.
    split: the column of a table that says train, validation or test.
    name: what it is called in tables and folders.

  Raises:
    InputError: it is none of these, or its parts don't fit together.
  """
  refusal = lambda text: InputError(f'got data {name!r}; {text}')
  if _is_hf(x) or (isinstance(x, dict) and x and all(map(_is_hf, x.values()))):
    made = _hf(name, x, y, client, test, inputs, split, refusal)
  elif frames.is_frame(x):
    made = frames.dataset(name, x, y, client=client, test=test, inputs=inputs, split=split,
                          refusal=refusal)
  else:
    for key, value in (('inputs', inputs), ('split', split)):
      if len(value):
        raise refusal(f'{key}={value!r} names columns; expected x to be a table then')
    made = _plain(name, x, y, client, test, refusal)
  return made if domain is None else made._replace(
      domain=_aligned(domain, 'domain', len(made.y_train), refusal))


def _is_hf(x) -> bool:
  return hasattr(x, 'column_names') and hasattr(x, 'features')


def _hf(name, x, y, client, test, inputs, split, refusal) -> Dataset:
  """Makes a data set of one of Hugging Face's, or of its splits {name: set}."""
  for key, value in (('y', y), ('client', client), ('inputs', inputs)):
    given = [value] if value is None or isinstance(value, str) else value
    if not all(one is None or isinstance(one, str) for one in given) or (
        key == 'client' and given is value):
      raise refusal(f'{key} is {type(value).__name__}; expected names of columns')
  if split:
    raise refusal(f'split={split!r} names a column; expected a set of splits, or test')
  joined = lambda names: names if isinstance(names, str) else ','.join(names or ())
  roles = SimpleNamespace(label=joined(y), inputs=joined(inputs), client=client or '', size='',
                          train='', test='')
  train, own = hf.splits(x, roles, refusal)
  test = own if test is None else test
  for part in (train, test):
    if part is not None and not (_is_hf(part) and hasattr(part, '__len__')):
      raise refusal(f'a split is {type(part).__name__}; expected a Dataset that is no stream')
  return hf.dataset(name, train, test, roles, refusal)


def _plain(name, x, y, client, test, refusal) -> Dataset:
  """Makes a data set of arrays, or of pairs."""
  x_train, y_train = _arrays(x, y, 'x', refusal)
  x_test, y_test = x_train[:0], y_train[:0]
  if test is not None:
    x_test, y_test = _arrays(*(test if isinstance(test, tuple) else (test, None)), 'test', refusal)
  number, owners = (None, ()) if client is None else columns.numbered_owners(
      _aligned(client, 'client', len(y_train), refusal))
  return Dataset(name, x_train, y_train, x_test, y_test, 0, number, owners=owners)


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
