"""CrisisMMD, version 2.0: tweets with images from seven disasters."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
import os
import textwrap
from typing import NamedTuple

from absl import logging
import numpy as np

from hmm_jax.data import arrays, files, images, ngrams
from hmm_jax.registry import Setting, Source
from hmm_jax.types import Dataset, InputError, PyTree

EVENTS = (
    'california_wildfires', 'hurricane_harvey', 'hurricane_irma', 'hurricane_maria',
    'iraq_iran_earthquake', 'mexico_earthquake', 'srilanka_floods')
CLASSES = {
    'informative': ('informative', 'not_informative'),
    'humanitarian': (
        'affected_individuals', 'infrastructure_and_utility_damage', 'injured_or_dead_people',
        'missing_or_found_people', 'not_humanitarian', 'other_relevant_information',
        'rescue_volunteering_or_donation_effort', 'vehicle_damage'),
}
_COLUMNS = ('event_name', 'tweet_id', 'tweet_text', 'image', 'label_text', 'label_image')
_IMAGES = 'data_image'
# Folders that may hold the tables: that of the images, or the one the release unpacks to.
_TABLES = ('', 'crisismmd_datasplit_all')

# (tweet ids, their texts) -> vectors [n, F].
Embed = Callable[[Sequence[str], Sequence[str]], np.ndarray]
# (folder, paths in it) -> (uint8 images [n, H, W, C], {index: why it can't be read}).
Decode = Callable[[str, Sequence[str]], tuple[np.ndarray, dict[int, str]]]


class Row(NamedTuple):
  """A tweet with one of its images."""

  place: str  # table and line, for error messages
  tweet: str  # its id
  text: str
  image: str  # a path in the release
  domain: int
  label: int


def load(folder: str, *, task: str, labels: str, embed: Embed | None, decode: Decode | None,
         broken: str) -> Dataset:
  """Loads one of the tasks from the release's tables and images.

  Training examples are those of the train and then of the dev table, from which clients
  split off validation examples (our choice: a Dataset has no third split); test examples are
  those of the test table. No tweet is in two tables, but a tweet with several images is as
  many examples, so validation examples may share their text with training examples.

  Args:
    folder: of the release, with data_image/ and the tables task_TASK_text_img_SPLIT.tsv.
    task: one of CLASSES, whose order numbers the labels.
    labels: of the `text` or the `image`; `agreed`: only examples where both are equal.
    embed: makes vectors of texts; None leaves texts out.
    decode: reads images; None leaves images out.
    broken: `refuse` images that can't be read, or `skip` their examples.

  Returns:
    A Dataset whose x is {'image': ..., 'text': ...}, or the array of the only modality;
    `domain` is the index in EVENTS of each training example.

  Raises:
    InputError: a table or the images are missing, damaged or malformed.

  Reference: F. Alam, F. Ofli, M. Imran. "CrisisMMD: Multimodal Twitter Datasets from Natural
  Disasters". ICWSM 2018. arXiv:1805.00713.
  """
  folder = os.path.expanduser(folder)
  train, dev, test = ([*_rows(folder, task, split, labels)] for split in ('train', 'dev', 'test'))
  rows, x = [*train, *dev, *test], {}
  split = len(train) + len(dev)
  _check_split(split, rows, f'crisismmd.labels={labels}', folder)
  if embed:
    x['text'] = embed([row.tweet for row in rows], [row.text for row in rows])
  if decode:
    _check_images(folder, 'both' if embed else 'image')
    x['image'], failed = decode(folder, [row.image for row in rows])
    if failed:
      kept = _without(failed, rows, broken)
      rows, split = [rows[i] for i in kept], int(np.sum(kept < split))
      x = {name: part[kept] for name, part in x.items()}
      _check_split(split, rows, f'crisismmd.broken={broken}', folder)
  y = np.array([row.label for row in rows], np.int32)
  domain = np.array([row.domain for row in rows[:split]], np.int32)
  return Dataset(
      'crisismmd', _inputs(x, slice(split)), y[:split], _inputs(x, slice(split, None)), y[split:],
      len(CLASSES[task]), domain=domain)


def _check_split(split, rows, setting, folder):
  if not 0 < split < len(rows):
    raise InputError(f'got {setting}; {folder} has {split} such examples for training and '
                     f'{len(rows) - split} for test, expected some of both')


def _error(text: str) -> InputError:
  return InputError(f'got dataset=crisismmd; {text}')


def _rows(folder, task, split, labels) -> Iterator[Row]:
  """Yields the labeled examples of a table."""
  path = _find(folder, f'task_{task}_text_img_{split}.tsv')
  columns = [column for column in ('label_text', 'label_image') if labels in (column[6:], 'agreed')]
  for place, entry in _table(path):
    found = {_number(place, column, entry[column], CLASSES[task]) for column in columns}
    if len(found) == 1:
      yield Row(place, entry['tweet_id'], entry['tweet_text'], entry['image'],
                _number(place, 'event_name', entry['event_name'], EVENTS), found.pop())


def _find(folder, name):
  paths = [os.path.join(folder, place, name) for place in _TABLES]
  for path in paths:
    if os.path.exists(path):
      return path
  raise _error(f'{folder} has no {name}, nor has its {_TABLES[-1]}; expected data_dir to be the '
               'folder of the release')


def _table(path) -> Iterator[tuple[str, dict[str, str]]]:
  """Yields the place and the columns of each line of a table. Quotes have no meaning in it."""
  # Only a newline ends a line: tweets contain carriage returns and quotation marks.
  with files.reading(f'a readable table {path}', _error), open(
      files.ordinary(path), encoding='utf-8-sig', newline='\n') as file:
    header, *lines = [line.rstrip('\r\n').split('\t') for line in file] or [[]]
  if missing := [name for name in _COLUMNS if name not in header]:
    raise _error(f'{path} lacks the columns {", ".join(missing)}; it has '
                 f'{textwrap.shorten(", ".join(header), 200)}')
  for number, line in enumerate(lines, 2):
    place = f'line {number} of {path}'
    if len(line) != len(header):
      raise _error(f'{place} has {len(line)} columns, expected {len(header)}')
    yield place, dict(zip(header, line, strict=True))


def _number(place, column, name, names):
  if name not in names:
    raise _error(f'{place} has the {column} {textwrap.shorten(name, 80)!r}, expected one of '
                 f'{", ".join(names)}')
  return names.index(name)


def _check_images(folder, modalities):
  if not os.path.isdir(os.path.join(folder, _IMAGES)):
    raise InputError(f'got crisismmd.modalities={modalities}; {folder} has no folder {_IMAGES}, '
                     "expected the release's images there, or crisismmd.modalities=text")


def _without(failed, rows, broken):
  """Returns the indices of readable images; raises or warns about the others."""
  first = min(failed)
  problem = (f"{len(failed)} of {len(rows)} images can't be read, the first is "
          f'{rows[first].image} in {rows[first].place}: {textwrap.shorten(failed[first], 200)}')
  if broken == 'refuse':
    raise _error(f'{problem}; expected all, or crisismmd.broken=skip to leave such examples out')
  logging.warning('%s; such examples are left out', problem)
  return np.setdiff1d(np.arange(len(rows)), [*failed])


def _inputs(x: dict[str, np.ndarray], rows: slice) -> PyTree:
  parts = {name: part[rows] for name, part in x.items()}
  return parts if len(parts) > 1 else next(iter(parts.values()))


FOLDER = '~/tensorflow_datasets/crisismmd'
SETTINGS = {
    'task': Setting('informative', 'labels to predict', choices=CLASSES),
    'labels': Setting('agreed', 'labels of the text or the image; agreed: only examples where both '
                      'are equal', choices=('agreed', 'text', 'image')),
    'modalities': Setting('both', 'inputs to load', choices=('text', 'image', 'both')),
    'ngrams': Setting(
        2048, "hash buckets for a text's words and word pairs", at_least=1, at_most=2**17),
    'vectors': Setting(
        '', 'instead of hashed n-grams, an .npz file with tweet ids `id` and vectors `x`, '
        'which become float32'),
    'image_size': Setting(64, 'pixels per side', at_least=1, at_most=1024),
    'cache': Setting('', "folder for decoded images; '': `cache` in the release's folder"),
    'broken': Setting('refuse', 'what to do with examples whose image cannot be read',
                      choices=('refuse', 'skip')),
} | files.UNPACK_LIMIT


def load_release(path: str, settings, data_dir: str) -> Dataset:
  """Loads the modalities that the settings name."""
  del path
  folder = data_dir or FOLDER

  def embed(tweets, texts):
    if settings.vectors:
      return arrays.vectors(settings.vectors, tweets, files.Limit(
          settings.unpack_limit, 'crisismmd.unpack_limit'))
    return ngrams.hashed(texts, features=settings.ngrams)

  decode = partial(images.pictures, size=settings.image_size,
                   cache=settings.cache or os.path.join(folder, 'cache'))
  return load(
      folder, task=settings.task, labels=settings.labels, broken=settings.broken,
      embed=None if settings.modalities == 'image' else embed,
      decode=None if settings.modalities == 'text' else decode)


SOURCE = Source(
    'crisismmd', load_release, SETTINGS,
    summary='tweets with images from seven disasters, read from the release in data_dir',
    paper='Alam, Ofli, Imran. ICWSM 2018. arXiv:1805.00713')
