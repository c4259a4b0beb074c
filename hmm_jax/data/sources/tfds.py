"""Image sets prepared by TensorFlow Datasets, read without TensorFlow."""

from collections.abc import Iterator
import difflib
import io
import itertools
import json
import os
import pathlib
import re
import textwrap
from typing import Any

import numpy as np

from hmm_jax.data import files, images, numbering
from hmm_jax.registry import Setting, Source
from hmm_jax.types import Dataset, InputError

_NAME = re.compile(r'\w+(/[\w.+-]+)?(:[\d.*]+)?', re.ASCII)
_CLASS = ('pythonClassName', 'python_class_name', 'type')  # keys that name a Python class
_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}  # of Pillow, by channels
_CHUNK = 1000  # encoded examples held at a time


class Unknown(InputError):
  """The name of no set of TFDS."""


def load(name: str, data_dir: str | None = None, label: str = 'label') -> Dataset:
  """Loads a prepared image-classification set into memory.

  Args:
    name: as in TFDS: 'mnist', 'mnist:3.0.1', 'emnist/digits'.
    data_dir: where it was prepared; None for the default of TFDS.
    label: the feature to learn, such as coarse_label.

  Returns:
    A Dataset of uint8 images [D, H, W, C]; `x_test` is empty if the set
    has no split 'test'.

  Raises:
    InputError: the set is unknown, not prepared, damaged, or not of labeled
      uint8 images of one shape.
  """
  builder = _find(name, data_dir)
  shape, feature = _image_features(name, builder, label)
  classes = feature.num_classes
  refusal = lambda text: InputError(f'got dataset={name!r}; {text}')
  with files.reading(f'readable array_record files in {builder.data_path}', refusal):
    x_train, y_train = _read(builder, 'train', shape, label)
    x_test, y_test = x_train[:0].copy(), y_train[:0].copy()
    if 'test' in builder.info.splits:
      x_test, y_test = _read(builder, 'test', shape, label)
  if min(y_train.min(initial=0), y_test.min(initial=0)) < 0:
    raise refusal('expected a label on every example, some have none')
  y_train, y_test = (numbering.checked(y, classes, name) for y in (y_train, y_test))
  return Dataset(name.partition(':')[0], x_train, y_train, x_test, y_test, classes,
                 titles=tuple(feature.names))


def _find(name, data_dir):
  """Returns the builder of a set that is prepared on disk."""
  if not _NAME.fullmatch(name):
    raise _unknown(name, ' such as mnist, mnist:3.0.1 or emnist/digits')
  import tensorflow_datasets as tfds  # takes a third of a second

  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
  try:
    _check_prepared(name, data_dir)
    builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
  except tfds.core.DatasetNotFoundError as error:
    known = tfds.list_builders(with_community_datasets=False)  # the others need TensorFlow
    raise _unknown(name, _nearest(name, known)) from error
  except InputError:
    raise
  except Exception as error:  # TFDS lets through whatever a builder or a damaged file raises
    reason = re.sub(r'Failed to construct dataset .*?}": ', '', str(error), flags=re.DOTALL)
    raise _unknown(name, f': {textwrap.shorten(reason, 240)}'.rstrip('.:')) from error
  if not builder.info.splits:
    raise _not_prepared(name, data_dir, builder.data_path)
  return builder


def _check_prepared(name, data_dir):
  """Refuses prepared files that TFDS would wait for, or import classes of others to read."""
  import tensorflow_datasets as tfds

  plain = {f'{kind.__module__}.{kind.__name__}' for kind in vars(tfds.features).values()
           if isinstance(kind, type)}
  stem = tfds.core.naming.parse_builder_name_kwargs(name)[0].name
  for folder in tfds.core.utils.file_utils.list_data_dirs(data_dir):
    if '://' in str(folder):
      raise InputError(f'got dataset={name!r} with data_dir={folder}; expected a local folder')
    # Of a version, or of a config and a version.
    for path in itertools.chain(*map(pathlib.Path(folder, stem).glob, ('*/*', '*/*/*'))):
      refusal = lambda text, path=path: InputError(f'got dataset={name!r} with {path}; {text}')
      with files.reading('a readable file', refusal):
        files.ordinary(str(path))
        found = path.name == 'features.json' and {*_kinds(json.loads(path.read_text()))} - plain
      if found:
        raise refusal(f'expected features of TFDS, it names {min(found)!r:.100}')


def _kinds(node) -> Iterator[str]:
  """Yields the Python classes that a tree of features names."""
  if isinstance(node, list):
    yield from itertools.chain(*map(_kinds, node))
  elif isinstance(node, dict):
    yield from (node[key] for key in _CLASS if isinstance(node.get(key), str))
    yield from itertools.chain(*map(_kinds, node.values()))


def _nearest(name, known):
  stem = name.partition(':')[0].partition('/')[0]
  near = difflib.get_close_matches(stem, known)
  return f': the nearest are {", ".join(near)}' if near else ': none comes near'


def _unknown(name, reason):
  return Unknown(f'got dataset={name!r}; expected the name of a TFDS image set{reason}')


def _not_prepared(name, data_dir, path):
  where = '' if data_dir is None else f', data_dir={data_dir!r}'
  return InputError(
      f"got dataset={name!r}, which is not prepared in {path}; run: pip install 'hmm_jax[prepare]' "
      f'&& python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder({name!r}{where}, file_format='array_record').download_and_prepare()\"")


def _image_features(name, builder, wanted):
  """Returns the shape (H, W, C) of an image, and the feature of the label."""
  import tensorflow_datasets as tfds

  if 'train' not in builder.info.splits:
    raise InputError(f"got dataset={name!r}; expected a split 'train', it has "
                     f'{", ".join(builder.info.splits)}')
  features = dict(builder.info.features)
  image, label = features.get('image'), features.get(wanted)
  if not isinstance(image, tfds.features.Image) or not isinstance(
      label, tfds.features.ClassLabel) or not label.num_classes:
    raise InputError(f"got dataset={name!r}; expected an 'image' and a class {wanted!r}, it has "
                     f'{", ".join(sorted(features))}')
  if image.np_dtype != np.uint8 or None in image.shape or image.shape[2] not in _MODES:
    raise InputError(f'got dataset={name!r}; expected uint8 images of one shape, not '
                     f'{np.dtype(image.np_dtype)} {image.shape}')
  return image.shape, label


def _read(builder, split, shape, label):
  """Returns the images [D, H, W, C] and the labels [D] of a split."""
  import tensorflow_datasets as tfds

  # Decoding here takes 75 us per CIFAR image against 100 us inside TFDS (which also
  # logs that OpenCV is missing); threads gain little, as Python is the bottleneck.
  # Only these two are decoded: another feature may be a picture of any format.
  source = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
  features = tfds.features.FeaturesDict({
      name: builder.info.features[name] for name in ('image', label)})
  x = np.empty((len(source), *shape), np.uint8)
  y = np.empty(len(source), np.int64)
  for first in range(0, len(source), _CHUNK):
    chunk = source.__getitems__(range(first, min(first + _CHUNK, len(source))))
    for row, record in enumerate(chunk, first):
      example: Any = features.deserialize_example_np(
          record, decoders={'image': tfds.decode.SkipDecoding()})
      x[row] = _decode(example['image'], shape)
      y[row] = example[label]
  return x, y


def _decode(content, shape):
  image = images.opened(io.BytesIO(content))
  found, wanted = (image.size[::-1], image.mode), (shape[:2], _MODES[shape[2]])
  if found != wanted:  # Another mode would be cast, such as 16 bits or places in a palette.
    raise ValueError(f'an image is {found}, not {wanted}')
  return np.asarray(image).reshape(shape)


SOURCE = Source(
    'tfds', lambda path, settings, data_dir: load(path, data_dir or None, settings.label),
    {'label': Setting('label', 'the class to learn, such as coarse_label of cifar100')}, path=True,
    summary='any prepared image set of TensorFlow Datasets by its name, with or without tfds:')
