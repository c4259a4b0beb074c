"""Members of .npz files: nothing is unpacked before its header says what it is."""

from collections.abc import Iterable
import math
import os
from typing import NamedTuple
import zipfile

import numpy as np
from numpy.lib import format as npy

_MOST_DEFLATED = 1032  # bytes that one byte of a deflated file can become, zlib.net/zlib_tech.html
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class Header(NamedTuple):
  """What the header of an array says."""

  shape: tuple[int, ...]
  dtype: np.dtype


def header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Header:
  """Reads the header of a member.

  Raises:
    ValueError: it is no array of plain values, or claims what the member can't hold. Damaged bytes
      raise many other errors.
  """
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError(f'{info.filename} is compressed in another way than savez_compressed does')
  with archive.open(info) as file:
    shape, _, dtype = _HEADERS[npy.read_magic(file)](file)
    claimed = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
      raise ValueError(f'{info.filename} holds Python objects')
    if file.tell() + claimed != info.file_size or claimed > _most(archive, info):
      raise ValueError(
          f'{info.filename} claims {claimed:,} bytes, as {dtype} {shape}, and has not as many')
  return Header(shape, dtype)


def read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  """Reads a member whose header is sound; errors as of `header`. Nothing is ever unpickled."""
  header(archive, info)
  with archive.open(info) as file:
    return npy.read_array(file, allow_pickle=False)  # At its end the checksum is compared.


def unpacked(members: Iterable[zipfile.ZipInfo]) -> int:
  """Returns the bytes that compressed members unpack to; others take what the file does."""
  return sum(info.file_size for info in members if info.compress_type != zipfile.ZIP_STORED)


def _most(archive, info) -> int:
  """Returns the most bytes that a member can have, whatever its entry says of its packed size."""
  return _MOST_DEFLATED * (min(info.compress_size, os.path.getsize(archive.filename)) + 1)
