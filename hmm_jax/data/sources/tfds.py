"""Image sets prepared by TensorFlow Datasets, read without TensorFlow."""

import difflib
import io
import os
import re
import textwrap

import numpy as np

from hmm_jax.registry import Source
from hmm_jax.types import Dataset, InputError

_NAME = re.compile(r'\w+(/[\w.+-]+)?(:[\d.*]+)?', re.ASCII)
_CHUNK = 1000  # encoded examples held at a time


class Unknown(InputError):
  """The name of no set of TFDS."""


def load(name: str, data_dir: str | None = None) -> Dataset:
  """Loads a prepared image-classification set into memory.

  Args:
    name: as in TFDS: 'mnist', 'mnist:3.0.1', 'emnist/digits'.
    data_dir: where it was prepared; None for the default of TFDS.

  Returns:
    A Dataset of uint8 images [D, H, W, C]; `x_test` is empty if the set
    has no split 'test'.

  Raises:
    InputError: the set is unknown, not prepared, damaged, or not of labeled
      uint8 images of one shape.
  """
  builder = _find(name, data_dir)
  shape, classes = _image_features(name, builder)
  try:
    x_train, y_train = _read(builder, 'train', shape)
    x_test, y_test = x_train[:0].copy(), y_train[:0].copy()
    if 'test' in builder.info.splits:
      x_test, y_test = _read(builder, 'test', shape)
  except (RuntimeError, OSError, ValueError) as error:
    raise InputError(
        f'got dataset={name!r}; expected readable array_record files in {builder.data_path}: '
        f'{textwrap.shorten(str(error), 200)}') from error
  if min(y_train.min(initial=0), y_test.min(initial=0)) < 0:
    raise InputError(f'got dataset={name!r}; expected a label on every example, some have none')
  return Dataset(name.partition(':')[0], x_train, y_train, x_test, y_test, classes)


def _find(name, data_dir):
  """Returns the builder of a set that is prepared on disk."""
  if not _NAME.fullmatch(name):
    raise _unknown(name, ' such as mnist, mnist:3.0.1 or emnist/digits')
  import tensorflow_datasets as tfds  # takes a third of a second

  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
  try:
    builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
  except tfds.core.DatasetNotFoundError as error:
    known = tfds.list_builders(with_community_datasets=False)  # the others need TensorFlow
    raise _unknown(name, _nearest(name, known)) from error
  except Exception as error:  # TFDS lets through whatever a builder or a damaged file raises
    reason = re.sub(r'Failed to construct dataset .*?}": ', '', str(error), flags=re.DOTALL)
    raise _unknown(name, f': {textwrap.shorten(reason, 240)}'.rstrip('.:')) from error
  if not builder.info.splits:
    raise _not_prepared(name, data_dir, builder.data_path)
  return builder


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


def _image_features(name, builder):
  """Returns the shape (H, W, C) of an image and the number of classes."""
  import tensorflow_datasets as tfds

  if 'train' not in builder.info.splits:
    raise InputError(f"got dataset={name!r}; expected a split 'train', it has "
                     f'{", ".join(builder.info.splits)}')
  features = dict(builder.info.features)
  image, label = features.get('image'), features.get('label')
  if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
    raise InputError(f"got dataset={name!r}; expected an 'image' and a class 'label', it has "
                     f'{", ".join(sorted(features))}')
  if image.np_dtype != np.uint8 or None in image.shape:
    raise InputError(f'got dataset={name!r}; expected uint8 images of one shape, not '
                     f'{np.dtype(image.np_dtype)} {image.shape}')
  return image.shape, label.num_classes


def _read(builder, split, shape):
  """Returns the images [D, H, W, C] and the labels [D] of a split."""
  from PIL import Image
  import tensorflow_datasets as tfds

  # Decoding here takes 75 us per CIFAR image against 100 us inside TFDS (which also
  # logs that OpenCV is missing); threads gain little, as Python is the bottleneck.
  source = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
  x = np.empty((len(source), *shape), np.uint8)
  y = np.empty(len(source), np.int32)
  for first in range(0, len(source), _CHUNK):
    chunk = source.__getitems__(range(first, min(first + _CHUNK, len(source))))
    for row, example in enumerate(chunk, first):
      x[row] = np.asarray(Image.open(io.BytesIO(example['image']))).reshape(shape)
      y[row] = example['label']
  return x, y


SOURCE = Source(
    'tfds', lambda path, settings, data_dir: load(path, data_dir or None), path=True,
    summary='any prepared image set of TensorFlow Datasets by its name, with or without tfds:')
