"""Columns of a table, such as a CSV file or a data frame, made into a data set.

Columns of numbers are inputs as they are, columns of strings one input for each distinct string.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hmm_jax.data import numbering
from hmm_jax.data.files import Refusal
from hmm_jax.registry import suggestion
from hmm_jax.types import Dataset

_MOST_STRINGS = 1000  # distinct ones of an input; beyond, they are texts or names
SPLITS = {'train': 'train', 'training': 'train', 'test': 'test', 'testing': 'test',
          'validation': 'train', 'valid': 'train', 'val': 'train', 'dev': 'train'}


# The name of a column, and the strings that it may have, () for numbers.
Encoding = tuple[str, tuple[str, ...]]


class Roles(NamedTuple):
  """What columns are used for, by their names.

  target: what is learned: one column, or several of numbers.
  client: the natural owner of each example; '' for none.
  split:  train, validation or test; '' if there is no such column. Validation examples are
          trained on, as each run holds out its own.
  inputs: () for all other columns.
  keys:   what sets each of these, for errors.
  """

  target: Sequence[str]
  client: str = ''
  split: str = ''
  inputs: Sequence[str] = ()
  keys: Mapping[str, str] = {}


def dataset(name: str, table: Mapping[str, np.ndarray], roles: Roles,
            refusal: Refusal) -> Dataset:
  """Makes a data set of columns, numbers or strings [D] each.

  Args:
    name: of the set.
    table: {name of a column: values}.
    roles: which columns are what.
    refusal: makes an error.

  Raises:
    InputError: a column is not there, or has values that its role does not allow.
  """
  for role in ('target', 'client', 'split', 'inputs'):
    chosen = getattr(roles, role)
    for column in [chosen] * bool(chosen) if isinstance(chosen, str) else chosen:
      if column not in table:
        raise refusal(f'it has no column {column!r} for {roles.keys.get(role, role)}; expected one '
                      f'of {_choices(table)}' + suggestion(column, table))
  if not roles.target:
    raise refusal(f'expected {roles.keys.get("target", "target")}, the column to learn, one of '
                  f'{_choices(table)}')
  used = {*roles.target, roles.client, roles.split}
  check_apart(roles.target, roles.inputs, roles.keys, refusal)
  inputs = roles.inputs or [column for column in table if column not in used]
  if not inputs:
    raise refusal('expected a column of inputs beside those of target, client and split')
  encoding = encoded(inputs, table, refusal)
  x, y = features(encoding, table, refusal), targets(table, roles.target, refusal)
  test = _is_test(table, roles, refusal)
  client, owners = None, ()
  if roles.client:
    client, owners = numbered_owners(table[roles.client][~test])
  return Dataset(name, x[~test], y[~test], x[test], y[test], 0, client, owners=owners,
                 names=tuple(roles.target), columns=encoding)


def check_apart(target: Sequence[str], inputs: Sequence[str], keys: Mapping[str, str],
                refusal: Refusal):
  """Refuses a column that is named twice, or is to be learned and an input as well."""
  for role, chosen in (('target', target), ('inputs', inputs)):
    if twice := [name for name in chosen if list(chosen).count(name) > 1]:
      raise refusal(f'{keys.get(role, role)} names the column {twice[0]!r} twice; expected it once')
  if both := [name for name in inputs if name in target]:
    raise refusal(f'{keys.get("inputs", "inputs")} has the column {both[0]!r}, which is to be '
                  'learned; expected others')


def plain(x: np.ndarray, name: str, refusal: Refusal) -> np.ndarray:
  """Returns strings for objects that are all strings; refuses other objects, and missing ones."""
  if x.dtype.kind in 'biufU':
    return x
  if x.dtype.kind != 'O':
    raise refusal(f'{name} holds {x.dtype}; expected numbers or strings')
  kinds = {type(value) for value in x.ravel()}
  if kinds == {str}:
    return x.astype(str)
  if kinds <= {int, float, bool}:
    return x.astype(float)
  raise refusal(f'{name} holds {", ".join(sorted(kind.__name__ for kind in kinds))}; expected only '
                'numbers, or only strings, and no missing value')


def listed(text: str, table: Collection[str]) -> list[str]:
  """Returns the columns that a text names, separated by commas, which one name may have, too."""
  return [text] if text in table else [name.strip() for name in text.split(',') if name.strip()]


def numbered_owners(owner: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
  """Numbers owners, [D] integers or strings, from 0 in their order: [D] int32, and the names."""
  known = np.unique(owner).tolist()
  return numbering.number(owner, known), tuple(map(numbering.shown, known))


def _choices(table) -> str:
  shown = [repr(name) if len(name) <= 40 else f'{name[:40]!r}...' for name in table]
  return ', '.join(shown[:20]) + (f' and {len(shown) - 20} more' if len(shown) > 20 else '')


def encoded(names: Sequence[str], table: Mapping[str, np.ndarray],
            refusal: Refusal) -> tuple[Encoding, ...]:
  """Returns how columns become inputs: the distinct strings of each, () of numbers."""
  return tuple((name, _categories(name, table[name], refusal)) for name in names)


def features(encoding: Sequence[Encoding], table: Mapping[str, np.ndarray],
             refusal: Refusal) -> np.ndarray:
  """Returns columns as inputs, [D, F] float32: numbers, or 1 at the place of a string.

  Raises:
    InputError: a column is not there, or has other strings, or strings in place of numbers.
  """
  return np.concatenate([_features(name, known, table, refusal) for name, known in encoding],
                        axis=1)


def _categories(name, values, refusal) -> tuple[str, ...]:
  if values.ndim > 1:
    raise refusal(f'column {name!r} holds lists; expected it alone in inputs, or left out of them')
  if values.dtype.kind in 'biuf':
    return ()
  known = tuple(np.unique(values).tolist())
  if len(known) > _MOST_STRINGS:
    raise refusal(f'column {name!r} has {len(known):,} different texts; expected numbers, or at '
                  f'most {_MOST_STRINGS:,} categories')
  return known


def _features(name, known, table, refusal) -> np.ndarray:
  if name not in table:
    raise refusal(f'it has no column {name!r}; expected it among {_choices(table)}')
  values = table[name]
  if not known:
    if values.dtype.kind not in 'biuf':
      raise refusal(f'column {name!r} has {str(values[0])[:40]!r}; expected numbers')
    return _finite(name, values, refusal)[:, None]
  place = numbering.number(values.astype(str), known)
  if (place < 0).any():
    raise refusal(f'column {name!r} has {str(values[place < 0][0])[:40]!r}; expected '
                  f'{numbering.listed(known)}')
  return (place[:, None] == np.arange(len(known))).astype(np.float32)


def _finite(name, values, refusal) -> np.ndarray:
  with np.errstate(over='ignore'):
    values = values.astype(np.float32)
  if len(bad := np.flatnonzero(~np.isfinite(values))):
    raise refusal(f'column {name!r} has no finite number in example {bad[0] + 1}; expected one '
                  'everywhere')
  return values


def targets(table: Mapping[str, np.ndarray], names: Sequence[str],
            refusal: Refusal) -> np.ndarray:
  """Returns what is learned: [D] of one column, [D, C] of several."""
  for name in names:
    if table[name].dtype.kind == 'f':
      _finite(name, table[name], refusal)
  if len(names) == 1:
    return table[names[0]]
  for name in names:
    if table[name].dtype.kind not in 'biuf':
      raise refusal(f'column {name!r} holds strings; expected numbers in each of several targets')
  return np.stack([table[name] for name in names], axis=1)


def _is_test(table, roles, refusal) -> np.ndarray:
  """Returns which examples are of the test split, [D] bool."""
  if not roles.split:
    return np.zeros(len(next(iter(table.values()))), bool)
  given = table[roles.split].astype(str)
  for value in np.unique(given).tolist():
    if value.lower() not in SPLITS:
      raise refusal(f'column {roles.split!r} has {value!r}; expected train, validation or test')
  test = np.array([SPLITS[value.lower()] == 'test' for value in given.tolist()], bool)
  if test.all():
    raise refusal(f'column {roles.split!r} names no training example')
  return test
