"""Text of many owners, from a JSON-lines file."""

from collections import defaultdict
from functools import partial
import json
import textwrap

import numpy as np

from hmm_jax.data import files
from hmm_jax.registry import Setting, Source
from hmm_jax.types import Dataset, InputError


def load(path: str, *, owner: tuple[str, ...], window: int, min_rows: int,
         unpack_limit: float = 0.0) -> Dataset:
  """Loads windows of characters, each with the character that follows it.

  A line of the file is a JSON object with a string 'text' and the fields that together
  name its owner. The texts of an owner are joined by newlines, in the order of the file,
  and cut into windows that do not overlap, so that examples split at random share no text:
  our choice, as windows that slide by one character, as in LEAF, would show most of a test
  example in training.

  Args:
    path: of the file, .gz or .xz if it is compressed.
    owner: fields that name the owner, strings or integers.
    window: characters in an example.
    min_rows: owners with fewer examples are left out.
    unpack_limit: GiB that a compressed file may unpack to; 0: a quarter of the memory.

  Returns:
    A Dataset without a test split. x is int32 [D, window], the index of each character
    in the sorted alphabet of the file, which are the classes; `client` is the index of each
    owner in sorted order.

  Raises:
    InputError: the file cannot be read, a line lacks a field, or no owner has enough examples.

  Reference: S. Caldas et al. "LEAF: A Benchmark for Federated Settings". arXiv:1812.01097.
  """
  if not owner:
    raise InputError('got text.owner=(); expected the names of one field or more')
  limit = files.Limit(unpack_limit, 'text.unpack_limit')
  texts = ['\n'.join(documents) for _, documents in sorted(_read(path, owner, limit).items())]
  alphabet = _codes(''.join(sorted(set().union(*texts))))
  lengths = [len(text) // (window + 1) for text in texts]
  rows = [_cut(np.searchsorted(alphabet, _codes(text)), window)
          for text, length in zip(texts, lengths, strict=True) if length >= min_rows]
  if not rows:
    raise _error(path, f'expected an owner of text.min_rows={min_rows} examples or more '
                       f'at text.window={window}; the largest of {len(texts)} has '
                       f'{max(lengths, default=0)}')
  x, y = np.split(np.concatenate(rows), [window], axis=1)
  client = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
  return Dataset(f'text:{path}', x, y[:, 0], x[:0].copy(), y[:0, 0].copy(), len(alphabet), client)


def _error(path, text):
  return InputError(f'got dataset=text:{path}; {text}')


def _read(path, owner, limit):
  """Returns the texts of each owner, in the order of the file: {owner: [text, ...]}."""
  texts, refusal = defaultdict(list), partial(_error, path)
  with files.reading('a readable file of JSON lines', refusal), files.opened_text(
      path, limit, refusal) as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        document = _document(path, number, line, owner)
        # A byte order mark, left over from a file of its own, is no character of the text.
        texts[tuple(str(document[field]) for field in owner)].append(
            document['text'].removeprefix('\ufeff'))
  return texts


def _document(path, number, line, owner):
  """Parses a line and checks that it has all fields."""
  try:
    document = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise _error(path, f'expected JSON lines, line {number} is none: {error}') from error
  for field in ('text', *owner):
    kind, wanted = (str, 'a string') if field == 'text' else (str | int, 'a string or whole number')
    if not isinstance(document, dict) or not isinstance(document.get(field), kind):
      raise _error(path, f'expected {wanted} {field!r} on every line, line {number} has '
                         f'{textwrap.shorten(line, 80)}')
  return document


def _codes(text):
  # JSON admits a lone half of a surrogate pair, which is not valid UTF-32.
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')


def _cut(codes, window):
  """Cuts codes into [D, window + 1], the last of each to be predicted; drops the remainder."""
  count = len(codes) // (window + 1)
  return codes[:count * (window + 1)].reshape(count, window + 1).astype(np.int32)


SOURCE = Source(
    'text', lambda path, settings, data_dir: load(path, **settings),
    files.UNPACK_LIMIT
    | {'owner': Setting(('play', 'speaker'), 'fields that together name a natural client'),
       'window': Setting(40, 'characters before the one to predict', at_least=1),
       'min_rows': Setting(
           50, 'least number of examples per owner; owners with fewer are left out', at_least=1)},
    path=True,
    summary='a JSON-lines file of texts and their owners, for next-character prediction',
    paper='Caldas et al. 2018. arXiv:1812.01097')
