"""Image files decoded into one array, with a cache."""

from collections.abc import Sequence
import contextlib
import os
import secrets
from typing import IO, TYPE_CHECKING
import warnings

from absl import logging
import numpy as np

from hmm_jax.data import arrays, files
from hmm_jax.types import InputError

if TYPE_CHECKING:
  from PIL import Image

# What data sets hold, and no format that Pillow gives to other programs, such as PostScript.
FORMATS = ('JPEG', 'PNG')
GRAY = ('1', 'L', 'LA', 'I', 'I;16')  # modes of Pillow
_MOST_SIDE = 4096  # pixels


def pictures(folder: str, names: Sequence[str], *, size: int,
             cache: str) -> tuple[np.ndarray, dict[int, str]]:
  """Reads image files in color, resized to one size.

  The whole image is squeezed to a square. Images decoded before are read from a file in
  `cache`, one for each size, unless the image file changed in size or modification time.

  Args:
    folder: that the names are relative to.
    names: n paths of image files.
    size: pixels per side.
    cache: folder for decoded images, created if needed. If it can't be written, a warning is
      logged and images are decoded each time.

  Returns:
    uint8 [n, size, size, 3], and {index: reason} for the images that can't be read, which are
    zeros and are tried again next time.
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
  """Returns a file's name, size and modification time; '' if it can't be found."""
  try:
    found = os.stat(os.path.join(folder, name))
    return f'{name} {found.st_size} {found.st_mtime_ns}'
  except (OSError, ValueError):  # ValueError: the name holds a null byte.
    return ''


def opened(source: str | IO[bytes]) -> 'Image.Image':
  """Opens a picture of one of the FORMATS, of which nothing is decoded yet.

  One of so many pixels that Pillow warns of a bomb counts as broken.
  """
  from PIL import Image  # needed by image files only
  with warnings.catch_warnings(action='error', category=Image.DecompressionBombWarning):
    return Image.open(source, formats=FORMATS)


def _decode(path, size):
  from PIL import Image
  with opened(files.ordinary(path)) as image:
    image.draft('RGB', (2 * size, 2 * size))  # A large JPEG is decoded several times faster.
    # RGBA first: a palette may have a transparent color.
    color = image.convert('RGBA').convert('RGB')
    return np.asarray(color.resize((size, size), Image.Resampling.BILINEAR))


def picture(path: str, shape: Sequence[int]) -> tuple[np.ndarray, tuple[int, int]]:
  """Reads one image file, upright, in gray or in color, resized to one size.

  Args:
    path: of the file.
    shape: (height, width, channels) to return; 1 channel is gray, 3 are color.

  Returns:
    uint8 [height, width, channels], and (height, width) of the file.

  Raises:
    InputError: it can't be read.
  """
  from PIL import ImageOps
  refusal = lambda text: InputError(f'got {path}; {text}')
  with files.reading(f'a readable image, {" or ".join(FORMATS)}', refusal), opened(
      files.ordinary(path)) as image:
    return _upright(ImageOps.exif_transpose(image), shape)


def _upright(image: 'Image.Image', shape: Sequence[int]) -> tuple[np.ndarray, tuple[int, int]]:
  """Returns a picture as uint8 of a shape, and the (height, width) that it had."""
  from PIL import Image
  height, width, channels = shape
  if image.mode.startswith('I'):  # 16 bits of gray, which Pillow would clip at 255.
    image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
  color = image.convert('RGBA').convert('RGB' if channels == 3 else 'L')
  own = color.size[::-1]
  if own != (height, width):
    color = color.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(color).reshape(height, width, channels), own


def stack_of(pictures: Sequence['Image.Image'], size: tuple[int, int] | None, key: str,
             refusal: files.Refusal) -> np.ndarray:
  """Does what `stack` does, with pictures that are opened already."""
  missing = [picture is None for picture in pictures]
  if any(missing):
    raise refusal(f'example {missing.index(True) + 1} has no picture; expected one everywhere')
  sizes = [picture.size[::-1] for picture in pictures]
  if size is None and len({*sizes}) > 1:
    odd = next(i for i, own in enumerate(sizes) if own != sizes[0])
    raise refusal(f'example {odd + 1} is {sizes[odd][0]}x{sizes[odd][1]} and the first '
                  f'{sizes[0][0]}x{sizes[0][1]} pixels; expected one size, or {key} to resize them')
  channels = 1 if all(picture.mode in GRAY for picture in pictures) else 3
  shape = (*(size or sizes[0]), channels)
  return np.stack([_upright(picture, shape)[0] for picture in pictures])


def _read(path, size):
  """Returns stamps [m] and images [m, size, size, 3] of a cache; none if it is unreadable."""
  with contextlib.suppress(InputError, KeyError):  # damaged, another kind of file, or none
    kept = arrays.read(path, ('stamps', 'images'), InputError)
    stamps, images = kept['stamps'], kept['images']
    if stamps.dtype.kind == 'U' and stamps.ndim == 1 and images.dtype == np.uint8 and (
        images.shape == (len(stamps), size, size, 3)):
      return stamps, images
  return np.array([], str), np.zeros((0, size, size, 3), np.uint8)


def _write(path, **kept):
  """Writes a cache atomically, so that no other process reads a partial one."""
  part = f'{path}.{secrets.token_hex(8)}'
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
      with open(part, 'xb') as file:  # A link that lies there is not followed.
        np.savez(file, **kept)
      os.replace(part, path)
    finally:
      with contextlib.suppress(OSError):
        os.remove(part)
  except (OSError, ValueError) as error:  # ValueError: the path holds a null byte.
    logging.warning('decoded images are not kept, crisismmd.cache names another folder: %s', error)


def size(text: str, key: str) -> tuple[int, int] | None:
  """Reads HEIGHTxWIDTH or one number for both; None of '', for the pictures' own size.

  Raises:
    InputError: it is none of these.
  """
  if not text or text == '0':
    return None
  parts = text.lower().split('x')
  if len(parts) > 2 or not all(part.isdecimal() and 0 < int(part) <= _MOST_SIDE for part in parts):
    raise InputError(f'got {key}={text}; expected pixels, such as 32 or 32x48, of at most '
                     f'{_MOST_SIDE}')
  return int(parts[0]), int(parts[-1])


def stack(paths: Sequence[str], size: tuple[int, int] | None, key: str,
          refusal: files.Refusal) -> np.ndarray:
  """Reads pictures of one size into an array, in gray if all are, else in color.

  Args:
    paths: of the files.
    size: (height, width) to resize to; None if they must have one size.
    key: of the setting of the size, for errors.
    refusal: makes an error.

  Returns:
    uint8 [n, height, width, 1 or 3].

  Raises:
    InputError: a file can't be read, or is of another size than the first.
  """
  gray, first = True, (0, 0)
  for path in paths:
    with files.reading(f'a readable picture {path}', refusal), opened(
        files.ordinary(path)) as image:
      gray = gray and image.mode in GRAY
      own = _upright_size(image)
    first = own if first == (0, 0) else first
    if size is None and own != first:
      raise refusal(f'{path} is {own[0]}x{own[1]} and {paths[0]} {first[0]}x{first[1]} pixels; '
                    f'expected one size, or {key} to resize them')
  height, width = size or first
  channels = 1 if gray else 3
  made = np.empty((len(paths), height, width, channels), np.uint8)
  for place, path in zip(made, paths):
    place[...] = picture(path, (height, width, channels))[0]
  return made


def _upright_size(image) -> tuple[int, int]:
  """Returns (height, width) after the rotation that a camera has noted."""
  width, height = image.size
  sideways = image.getexif().get(0x0112, 1) >= 5  # Of Orientation, 5 to 8 are by a quarter turn.
  return (width, height) if sideways else (height, width)
