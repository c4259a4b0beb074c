"""Image files as one array, decoded once."""

from collections.abc import Sequence
import os
import zipfile

from absl import logging
import numpy as np

# What NumPy and zipfile raise over a file that is absent, cut short or altered.
_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)


def pictures(folder: str, names: Sequence[str], *, size: int,
             cache: str) -> tuple[np.ndarray, dict[int, str]]:
  """Reads image files in color, resized to one size.

  The whole image is squeezed to a square. What was decoded before comes from a file in
  `cache`, one for each size, as long as the image file keeps its length and its date.

  Args:
    folder: what the names are paths in.
    names: n paths of image files.
    size: pixels a side.
    cache: folder for decoded images, made if need be. Where it can't be written, a warning
      says so and they are decoded each time.

  Returns:
    uint8 [n, size, size, 3], and {row: why} for the images that can't be read, which are
    zeros. These are tried again the next time.
  """
  path = os.path.join(os.path.expanduser(cache), f'{size}x{size}.npz')
  stamps = np.array([_stamp(folder, name) for name in names])
  known, images = _read(path, size)
  place = {stamp: i for i, stamp in enumerate(known.tolist())}
  where = np.array([place.get(stamp, -1) for stamp in stamps.tolist()], int)
  x, failed, old = np.zeros((len(names), size, size, 3), np.uint8), {}, where >= 0
  x[old] = images[where[old]]
  for i in np.flatnonzero(~old).tolist():
    try:
      x[i] = _decode(os.path.join(folder, names[i]), size)
    except Exception as error:  # Pillow lets through whatever a decoder raises.
      failed[i] = str(error) or type(error).__name__
  new = ~old & ~np.isin(np.arange(len(names)), [*failed])
  if new.any():
    _write(path, stamps=np.concatenate([known, stamps[new]]),
           images=np.concatenate([images, x[new]]))
  return x, failed


def _stamp(folder, name):
  """Names a file as it is now."""
  try:
    found = os.stat(os.path.join(folder, name))
    return f'{name} {found.st_size} {found.st_mtime_ns}'
  except (OSError, ValueError):  # A name may hold what no path can.
    return ''


def _decode(path, size):
  from PIL import Image  # what no other data set needs
  with Image.open(path) as image:
    image.draft('RGB', (2 * size, 2 * size))  # A large JPEG is decoded several times faster.
    # By way of RGBA: a palette may have a transparent color.
    color = image.convert('RGBA').convert('RGB')
    return np.asarray(color.resize((size, size), Image.Resampling.BILINEAR))


def _read(path, size):
  """Returns the stamps [m] and the images [m, size, size, 3] of a cache, if it can be read."""
  try:
    with open(path, 'rb') as file:  # np.load leaves a damaged one open
      arrays = np.load(file, allow_pickle=False)
      stamps, images = arrays['stamps'], arrays['images']
  except _DAMAGE:
    stamps, images = np.array([], str), np.zeros(0)
  if images.shape != (len(stamps), size, size, 3):  # Another program's, or none.
    return np.array([], str), np.zeros((0, size, size, 3), np.uint8)
  return stamps, images


def _write(path, **arrays):
  """Writes a cache whole, so that no other process reads half of one."""
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(part := f'{path}.{os.getpid()}', 'wb') as file:
      np.savez(file, **arrays)
    os.replace(part, path)
  except OSError as error:
    logging.warning('decoded images are not kept, crisismmd.cache names another folder: %s', error)
