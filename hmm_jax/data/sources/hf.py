"""Data sets of Hugging Face's `datasets`: of the hub, saved to disk, or in local files."""

from functools import partial
import os
from typing import Any

import numpy as np

from hmm_jax.data import columns, images, values
from hmm_jax.data.files import Refusal, reading
from hmm_jax.registry import Setting, Source, suggestion
from hmm_jax.types import Dataset, InputError

_FORMATS = {'.parquet': 'parquet', '.json': 'json', '.jsonl': 'json', '.csv': 'csv',
            '.arrow': 'arrow'}
_LABELS = ('label', 'labels', 'fine_label', 'target', 'y', 'class')  # what columns may be called
_TESTS = ('test', 'validation', 'valid', 'dev')  # splits to test on, the first that there is


def load(path: str, settings) -> Dataset:
  """Loads the training and test split of a set.

  Args:
    path: a folder of `save_to_disk`, a .parquet, .json, .jsonl or .csv file or a folder of them;
      or a name on the hub, NAME or NAME/CONFIG, which is downloaded once.
    settings: of the source.

  Returns:
    A Dataset of images [D, H, W, C], of lists of numbers or tokens, or of columns of numbers and
    strings as one vector; y as in the set, by name where it names its classes.

  Raises:
    InputError: `datasets` is not installed, there is no such set, or its columns don't suit.
  """
  refusal = partial(_error, path)
  train, test = splits(_opened(path, refusal), settings, refusal)
  return dataset(f'hf:{path}', train, test, settings, refusal)


def dataset(name: str, train: Any, test: Any, settings: Any, refusal: Refusal) -> Dataset:
  """Makes a data set of two splits; None for no test split. Errors as in `load`."""
  table = _Set(train, test, settings, refusal)
  target, inputs = table.target(), table.inputs()
  columns.check_apart(target, inputs, {'target': 'hf.label', 'inputs': 'hf.inputs'}, refusal)
  if settings.client:
    table.known(settings.client, 'hf.client')
  x_train, x_test = table.values(inputs)
  y_train, y_test = table.labels(target)
  client, owners = None, ()
  if settings.client:
    client, owners = columns.numbered_owners(table.column(train, settings.client))
  return Dataset(name, x_train, y_train, x_test, y_test, 0, client, owners=owners,
                 names=tuple(target) if len(target) > 1 else ())


def _error(path, text) -> InputError:
  return InputError(f'got dataset=hf:{path}; {text}')


def _opened(path, refusal) -> Any:
  """Returns the set, {split: Dataset} or one Dataset."""
  try:
    import datasets  # takes a second, and is an extra
  except ModuleNotFoundError as error:
    raise refusal("expected the package datasets: pip install 'hmm_jax[datasets]'") from error
  datasets.disable_progress_bars()
  local = os.path.expanduser(path)
  with reading('a set that can be loaded', refusal):
    if os.path.isfile(local):
      if os.path.splitext(local)[1] not in _FORMATS:
        raise refusal(f'expected a file of {", ".join(_FORMATS)}')
      return datasets.load_dataset(_FORMATS[os.path.splitext(local)[1]], data_files=local)
    if os.path.isdir(local):
      saved = {'dataset_dict.json', 'state.json'} & {*os.listdir(local)}
      return datasets.load_from_disk(local) if saved else datasets.load_dataset(local)
    if path[0] in '/.~' or path.count('/') > 2 or os.path.splitext(path)[1] in _FORMATS:
      raise refusal('expected a file or folder, or NAME or NAME/CONFIG of the hub; there is none')
    name, config = (path.rsplit('/', 1) if path.count('/') == 2 else (path, None))
    return datasets.load_dataset(name, config)


def splits(found: Any, settings: Any, refusal: Refusal) -> tuple[Any, Any]:
  """Returns the training and the test split; None for no test split."""
  if not isinstance(found, dict):
    return found, None
  names = [*found]
  train = settings.train or ('train' if 'train' in names or len(names) > 1 else names[0])
  test = settings.test or next((name for name in _TESTS if name in names and name != train), '')
  for key, name in (('hf.train', train), ('hf.test', test)):
    if name and name not in names:
      raise refusal(f'it has no split {name!r} for {key}; expected one of {", ".join(names)}'
                    + suggestion(name, names))
  return found[train], found[test] if test else None


class _Set:
  """Both splits of a set, and what its columns are used for."""

  def __init__(self, train, test, settings, refusal):
    self._splits = [train] + [test] * (test is not None)
    self._features, self._settings, self._refusal = train.features, settings, refusal
    if test is not None and test.column_names != train.column_names:
      raise refusal(f'its test split has the columns {", ".join(test.column_names)}; expected '
                    f'{", ".join(train.column_names)}, as in training')

  def known(self, name: str, key: str) -> str:
    """Returns the name of a column, if there is one."""
    if name not in self._features:
      raise self._refusal(f'it has no column {name!r} for {key}; expected one of '
                          f'{", ".join(self._features)}' + suggestion(name, self._features))
    return name

  def target(self) -> list[str]:
    """Returns the columns to learn: those that are named, or the one that is called so."""
    if text := self._settings.label:
      return [self.known(name, 'hf.label') for name in columns.listed(text, self._features)]
    named = [name for name in (*self._classes(), *_LABELS) if name in self._features]
    if not named:
      raise self._refusal('expected hf.label, the column to learn, one of '
                          f'{", ".join(self._features)}')
    return named[:1]

  def _classes(self):
    return [name for name, feature in self._features.items() if hasattr(feature, 'names')]

  def inputs(self) -> list[str]:
    """Returns the columns of the inputs: those that are named, the pictures, or all others."""
    if text := self._settings.inputs:
      return [self.known(name, 'hf.inputs') for name in columns.listed(text, self._features)]
    pictures = [name for name in self._features if self._is_picture(name)]
    used = {*self.target(), self._settings.client, *self._classes()}
    return pictures[:1] or [name for name in self._features if name not in used]

  def _is_picture(self, name) -> bool:
    return type(self._features[name]).__name__ == 'Image'

  def values(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs of both splits."""
    if not names:
      raise self._refusal('expected a column of inputs beside those of label and client')
    if pictures := [name for name in names if self._is_picture(name)]:
      if len(names) > 1:
        raise self._refusal(f'column {pictures[0]!r} holds pictures; expected it alone in inputs')
      size = images.size(self._settings.size, 'hf.size')
      with reading(f'readable pictures in column {names[0]!r}', self._refusal):
        both = images.stack_of([picture for split in self._splits for picture in split[names[0]]],
                               size, 'hf.size', self._refusal)
    elif len(names) == 1 and self.column(self._splits[0][:1], names[0]).ndim > 1:
      both = values.inputs(self._joined(names[0]), f'column {names[0]!r}', self._refusal)
    else:
      table = {name: self._joined(name) for name in names}
      both = columns.features(
          columns.encoded(names, table, self._refusal), table, self._refusal)
    count = len(self._splits[0])
    return both[:count], both[count:]

  def labels(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is learned of both splits; classes by their names."""
    table = {name: self._joined(name) for name in names}
    for name in names:
      if called := getattr(self._features[name], 'names', None):
        if table[name].min() < 0:
          raise self._refusal(f'column {name!r} has examples without a label, of -1; expected one '
                              'on each')
        table[name] = np.array(called)[table[name]]
    y, count = columns.targets(table, names, self._refusal), len(self._splits[0])
    return y[:count], y[count:]

  def _joined(self, name) -> np.ndarray:
    return np.concatenate([self.column(split, name) for split in self._splits])

  def column(self, split, name) -> np.ndarray:
    """Returns the values of a column, numbers or strings."""
    given = split[name][:]
    try:
      found = np.asarray(given)
    except ValueError as error:
      raise self._refusal(f'column {name!r} has lists of several lengths; expected one') from error
    return columns.plain(found, f'column {name!r}', self._refusal)


SOURCE = Source(
    'hf', lambda path, settings, data_dir: load(path, settings),
    {'label': Setting('', "the column to learn, or several of numbers, separated by commas; '': "
                      'the classes, or a column that is called label, target or y'),
     'inputs': Setting('', "the columns of the inputs; '': the pictures, or all other columns"),
     'client': Setting('', 'the column of the natural client of each example'),
     'size': Setting('', "pixels that pictures are resized to, such as 32 or 32x48; '': all have "
                     'one size'),
     'train': Setting('', "the split to train on; '': train"),
     'test': Setting('', "the split to test on; '': test, or else validation")},
    path=True,
    summary="a set of Hugging Face's datasets: on the hub, saved, or .parquet, .json, .csv files")
