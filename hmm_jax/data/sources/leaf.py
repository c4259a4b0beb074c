"""Data of LEAF: JSON files with the examples of many users."""

from functools import partial
import json
import math
import os

import numpy as np

from hmm_jax.data import columns, files, numbering, values
from hmm_jax.registry import Setting, Source
from hmm_jax.types import Dataset, InputError


def load(path: str, settings) -> Dataset:
  """Loads the JSON files of a folder, or of its folders `train` and `test`.

  A file has `users`, a list of names, and `user_data`, {user: {'x': [...], 'y': [...]}}. Inputs
  are lists of numbers, or texts of one length, whose characters become tokens, as does a label of
  one character then. Users are the natural clients; one in several files is one client.

  Args:
    path: of the folder, or of one file.
    settings: of the source.

  Returns:
    A Dataset with the users as owners, and y as in the files: [D] or [D, C].

  Raises:
    InputError: there are no files, or one is not of LEAF.

  Reference: S. Caldas et al. "LEAF: A Benchmark for Federated Settings". arXiv:1812.01097.
  """
  refusal, folder = partial(_error, path), os.path.expanduser(path)
  inner = _files(os.path.join(folder, 'train'))
  limit = files.Limit(settings.unpack_limit, 'leaf.unpack_limit')
  train, test = (_split(paths, limit, refusal) for paths in (
      inner or _files(folder), _files(os.path.join(folder, 'test')) if inner else []))
  if not train[0]:
    raise refusal('expected .json files of LEAF with examples, there are none')
  x, y, alphabet = _arrays(train[0] + test[0], train[1] + test[1], settings.shape, refusal)
  count = len(train[0])
  client, owners = columns.numbered_owners(np.array(train[2]))
  return Dataset(f'leaf:{path}', x[:count], y[:count], x[count:], y[count:],
                 len(alphabet), client, owners=owners, names=tuple(map(numbering.shown, alphabet)))


def _error(path, text) -> InputError:
  return InputError(f'got dataset=leaf:{path}; {text}')


def _files(place) -> list[str]:
  if os.path.isfile(place):
    return [place]
  if not os.path.isdir(place):
    return []
  return [os.path.join(place, name) for name in sorted(os.listdir(place))
          if name.removesuffix('.gz').endswith('.json')]


def _split(paths, limit, refusal) -> tuple[list, list, list[str]]:
  """Returns the inputs, the labels and the users of all examples in some files."""
  x, y, users = [], [], []
  for path in paths:
    with files.reading(f'JSON in {os.path.basename(path)}', refusal), files.opened_text(
        path, limit, refusal) as file:
      content = json.load(file)
    data = content.get('user_data') if isinstance(content, dict) else None
    if not isinstance(data, dict):
      raise refusal(f"expected 'user_data' in {os.path.basename(path)}, {{user: {{'x': [...], "
                    "'y': [...]}}")
    _check_users(content, data, os.path.basename(path), refusal)
    for user, own in data.items():
      inputs, labels = (own.get(name) if isinstance(own, dict) else None for name in 'xy')
      if not (isinstance(inputs, list) and isinstance(labels, list)) or len(inputs) != len(labels):
        raise refusal(f'user {user!r} in {os.path.basename(path)} has no lists x and y of one '
                      'length')
      x += inputs
      y += labels
      users += [user] * len(inputs)
  return x, y, users


def _check_users(content, data, name, refusal):
  """Refuses a file that is damaged: its lists of users and counts, where it has them, say so."""
  users, counts = content.get('users', [*data]), content.get('num_samples')
  if not isinstance(users, list) or {*map(str, users)} != {*data}:
    raise refusal(f"'users' in {name} are not those of 'user_data'; expected the same")
  if counts is None:
    return
  for user, count in zip(users, counts if isinstance(counts, list) else [], strict=False):
    own = data[str(user)]
    if isinstance(own, dict) and isinstance(own.get('y'), list) and len(own['y']) != count:
      raise refusal(f"user {user!r} in {name} has {len(own['y'])} examples; expected {count}, as "
                    "'num_samples' says")


def _arrays(x, y, shape, refusal) -> tuple[np.ndarray, np.ndarray, str]:
  """Returns inputs [D, ...] and labels, and the alphabet of texts; '' for numbers."""
  for name, given in (('x', x), ('y', y)):
    if len({isinstance(value, str) for value in given}) > 1:
      raise refusal(f'some {name} are strings and some are not; expected only one kind')
  try:
    inputs, labels = np.array(x), np.array(y)
  except ValueError as error:
    raise refusal('expected inputs of one length, some are longer than others') from error
  if inputs.dtype.kind == 'U' and inputs.ndim == 1:
    return _tokens(x, y, refusal)
  inputs = values.inputs(inputs, 'x', refusal)
  if shape:
    parts = shape.lower().split('x')
    axes = [int(part) if part.isdecimal() else 0 for part in parts]
    if math.prod(axes) != inputs[0].size:
      raise InputError(f'got leaf.shape={shape}; expected numbers such as 28x28x1 with a product '
                       f'of {inputs[0].size}, the numbers of an input')
    inputs = inputs.reshape(-1, *axes)
  return inputs, values.targets(labels, 'y', len(inputs), refusal), ''


def _tokens(x, y, refusal) -> tuple[np.ndarray, np.ndarray, str]:
  """Numbers the characters of texts of one length, and of the labels, in their order."""
  lengths = {len(text) for text in x}
  if len(lengths) > 1 or not all(isinstance(label, str) and len(label) == 1 for label in y):
    raise refusal('expected texts x of one length, each with the character y that follows')
  codes = np.array([[ord(c) for c in text + label] for text, label in zip(x, y)])
  alphabet, tokens = np.unique(codes, return_inverse=True)
  tokens = tokens.reshape(codes.shape).astype(np.int32)
  return tokens[:, :-1], tokens[:, -1], ''.join(map(chr, alphabet))


SOURCE = Source(
    'leaf', lambda path, settings, data_dir: load(path, settings),
    files.UNPACK_LIMIT
    | {'shape': Setting('', "shape of an input, such as 28x28x1; '': as in the files")},
    path=True, summary="LEAF's JSON files, whose users are the natural clients",
    paper='Caldas et al. 2018. arXiv:1812.01097')
