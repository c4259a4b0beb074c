"""Data frames, such as those of pandas, made into data sets; no library is imported for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hmm_jax.data import columns
from hmm_jax.data.files import Refusal
from hmm_jax.types import Dataset

Table = Mapping[str, np.ndarray]


def is_frame(x: Any) -> bool:
  """Tells whether something is a table with named columns."""
  return hasattr(x, 'columns') and hasattr(x, '__getitem__')


def dataset(name: str, x: Any, y: Any, *, client: Any, test: Any, inputs: Sequence[str],
            split: str, refusal: Refusal) -> Dataset:
  """Makes a data set of a data frame.

  Args:
    name: of the set.
    x: the frame.
    y: the names of columns of it, or values beside it: a series, an array, another frame.
    client: the same, of one column; None for no owners.
    test: a frame with the same columns, or a pair (x, y) if y are values; None for no test split.
    inputs: names of columns; () for all others.
    split: the name of a column; '' for none.
    refusal: makes an error.

  Raises:
    InputError: a column is not there, is there twice, or has values that don't suit.
  """
  table, target = _beside(_table(x, refusal), y, 'y', refusal)
  table, owner = _beside(table, client, 'client', refusal)
  if len(owner) > 1:
    raise refusal(f'client has {len(owner)} columns; expected one')
  inputs = [inputs] if isinstance(inputs, str) else [str(column) for column in inputs]
  roles = columns.Roles(target, *owner or [''], split, inputs,
                        {'target': 'y', 'client': 'client', 'split': 'split', 'inputs': 'inputs'})
  made = columns.dataset(name, table, roles, refusal)
  return made if test is None else _with_test(made, test, target, refusal)


def _with_test(made, test, target, refusal) -> Dataset:
  """Returns a data set with a test split, whose strings become inputs as in training."""
  x, y = test if isinstance(test, tuple) and len(test) == 2 else (test, None)
  if not is_frame(x):
    raise refusal(f'test is {type(test).__name__}; expected a data frame as for training, or a '
                  'pair of one and y')
  table, own = _beside(_table(x, refusal), y, 'y of test', refusal)
  if y is not None and len(own) == len(target):  # It may have another name than in training.
    table = {**table, **{name: table[found] for name, found in zip(target, own) if found in table}}
  for name in target:
    if name not in table:
      raise refusal(f'test has no column {name!r}, which is learned; expected it, or a pair (x, y)')
  return made._replace(x_test=columns.features(made.columns, table, refusal),
                       y_test=columns.targets(table, target, refusal))


def _table(frame, refusal) -> dict[str, np.ndarray]:
  """Returns the columns of a data frame by their names, as strings."""
  names = [str(name) for name in frame.columns]
  if twice := [name for name in names if names.count(name) > 1]:
    raise refusal(f'the column {twice[0]!r} is there twice; expected different names')
  return {str(name): columns.plain(np.asarray(frame[name]), f'column {str(name)!r}', refusal)
          for name in frame.columns}


def _beside(table: Table, given: Any, what: str, refusal: Refusal) -> tuple[Table, list[str]]:
  """Returns a table with what is given beside it, if these are values, and the names of columns."""
  if given is None or isinstance(given, str):
    return table, [given] if given else []
  if np.ndim(given) == 0:
    return table, [str(given)]
  if is_frame(given):
    more = _table(given, refusal)
  elif _are_names(given, table):
    return table, [*given]
  else:
    more = _named(given, getattr(given, 'name', None), what, refusal)
  rows = len(next(iter(table.values()), ()))
  for name, values in more.items():
    if len(values) != rows:
      raise refusal(f'{what} has {len(values)} values; expected {rows}, one for each example')
    if name in table:
      raise refusal(f'{what} is called {name!r}, as a column of x is; expected the name of that '
                    'column, or x without it')
  return {**table, **more}, [*more]


def _are_names(given, table) -> bool:
  rows = len(next(iter(table.values()), ()))
  return all(isinstance(name, str) for name in given) and (
      len(given) != rows or all(name in table for name in given))


def _named(given, name, what, refusal) -> dict[str, np.ndarray]:
  """Returns values [D] or [D, C] as columns."""
  values = columns.plain(np.asarray(given), what, refusal)
  name = what if name is None else str(name)
  if values.ndim == 1:
    return {name: values}
  if values.ndim != 2:
    raise refusal(f'{what} is {values.dtype} {values.shape}; expected one value for each example')
  return {f'{name} {i}': column for i, column in enumerate(values.T)}
