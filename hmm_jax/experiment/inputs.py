"""Inputs to predict on, from files: arrays (npz, npy), a table (csv), or images."""

from collections.abc import Mapping
import os
from typing import Any, NamedTuple

import numpy as np

from hmm_jax.data import columns, files, images
from hmm_jax.data.sources import csv
from hmm_jax.models.files import opened
from hmm_jax.types import InputError, PyTree

_KEYS = ('x', 'x_test')  # Of an npz file with several arrays.
_IMAGES = ('.png', '.jpg', '.jpeg')


class Inputs(NamedTuple):
  """Inputs with a name each, and what was done to them on the way."""

  x: PyTree  # [B, ...]
  names: list[str]  # [B]
  said: tuple[str, ...] = ()


def read(path: str, about: Mapping[str, Any]) -> Inputs:
  """Reads inputs of the kind that a model takes; their shapes and types are not checked.

  Texts are given as arrays of tokens, as what a token is belongs to the data set (our choice).

  Args:
    path: of a file .npz, .npy, .csv, .png, .jpg, or of a folder of images.
    about: what is known of the model, see blueprint.py.

  Raises:
    InputError: it can't be read; the message names the file.
  """
  path = os.path.expanduser(path)
  if not os.path.exists(path):
    raise InputError(f'got {path}; expected a file or folder, but there is none')
  if path.endswith('.npz'):
    return _numbered(_npz(path, [entry['modality'] for entry in about['inputs']]))
  if path.endswith('.npy'):
    return _numbered(_npy(path))
  if path.removesuffix('.gz').endswith('.csv'):
    return _numbered(_table(path, about))
  if os.path.isdir(path):
    found = sorted(name for name in os.listdir(path) if name.lower().endswith(_IMAGES))
    if not found:
      raise InputError(f'got {path} without a file of {", ".join(_IMAGES)}; expected images')
    return _pictures(path, found, about)
  if path.lower().endswith(_IMAGES):
    return _pictures(os.path.dirname(path), [os.path.basename(path)], about)
  raise InputError(f'got {path}; expected a file .npz, .npy, .csv, {", ".join(_IMAGES)}, or a '
                   'folder of images; texts as arrays of tokens in .npz')


def _numbered(x) -> Inputs:
  first = next(iter(x.values()), np.zeros(0)) if isinstance(x, dict) else x
  return Inputs(x, [str(i) for i in range(len(first) if np.ndim(first) else 0)])


def _table(path, about):
  """Reads a CSV file with the columns that the data set had; others are ignored."""
  refusal = lambda text: InputError(f'got {path}; {text}')
  if not about['columns']:
    raise refusal(f'expected .npz, as the model was not trained on a table: {about["expects"]}')
  return columns.features([(name, tuple(known)) for name, known in about['columns']],
                          csv.read(path, files.DEFAULT_LIMIT, refusal), refusal)


def _npz(path, modalities):
  with opened(path) as arrays:
    if modalities != ['']:
      missing = [name for name in modalities if name not in arrays.shapes]
      if missing:
        raise InputError(f'got {path} with {", ".join(arrays.shapes) or "no array"}; expected '
                         f'{", ".join(modalities)}')
      return {name: arrays.read(name) for name in modalities}
    only = list(arrays.shapes) if len(arrays.shapes) == 1 else []
    key = next((key for key in (*_KEYS, *only) if key in arrays.shapes), None)
    if key is None:
      raise InputError(f'got {path} with {", ".join(arrays.shapes) or "no array"}; expected '
                       f'{" or ".join(_KEYS)}, or a single array')
    return arrays.read(key)


def _npy(path):
  refusal = lambda text: InputError(f'got {path}; {text}')
  with files.reading('a readable .npy file of one plain array', refusal):
    # Mapped: a header that claims more than the file holds is an error, and no memory.
    x = np.load(files.ordinary(path), mmap_mode='r', allow_pickle=False)
    if not isinstance(x, np.ndarray):
      raise ValueError('it is an archive')
    return np.array(x)


def _pictures(folder, names, about) -> Inputs:
  """Reads image files in the shape and the range of values that a model takes."""
  entry = about['inputs'][0]
  shape, largest = entry['shape'], entry.get('largest', 0)
  if len(about['inputs']) > 1 or entry['dtype'] != 'uint8' or len(shape) != 3 or (
      shape[2] not in (1, 3)):
    raise InputError(f'got image files for a model that takes {about["expects"]}; expected .npz')
  read = [images.picture(os.path.join(folder, name), shape) for name in names]
  x, said = np.stack([image for image, _ in read]), []
  others = {size for _, size in read} - {tuple(shape[:2])}
  if others:
    sizes = ', '.join(f'{height}x{width}' for height, width in sorted(others)[:3])
    said.append(f'images of {sizes}{" ..." if len(others) > 3 else ""} are resized to '
                f'{shape[0]}x{shape[1]}')
  if 0 < largest < 128:  # Such as scikit-learn's digits: our choice, as no image file has a range.
    x = np.round(x * (largest / 255)).astype(np.uint8)
    said.append(f'values from 0 to 255 are scaled to 0 to {largest}, as in the data set')
  return Inputs(x, names, tuple(said))
