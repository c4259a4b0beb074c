"""Files that are damaged: bytes changed, cut out, repeated, or the end missing."""

from collections.abc import Callable, Iterator

import numpy as np
from reference import fuzzing

from hmm_jax.types import InputError


def changed(good: bytes, draws: int, seed: int = fuzzing.SEED) -> Iterator[bytes]:
  """Yields damaged copies, every other one cut short."""
  rng = np.random.default_rng(seed)
  for draw in range(draws * fuzzing.TIMES):
    bad = bytearray(good)
    if draw % 2:
      bad = bad[:rng.integers(len(bad))]
    else:
      bad[rng.integers(len(bad))] ^= rng.integers(1, 256)
    yield bytes(bad)


def mutated(good: bytes, draws: int, seed: int = fuzzing.SEED) -> Iterator[bytes]:
  """Yields copies with up to eight changes each, of bytes, blocks or numbers."""
  rng = np.random.default_rng(seed)
  place = lambda bad: int(rng.integers(len(bad)))
  for _ in range(draws * fuzzing.TIMES):
    bad = bytearray(good)
    for change in rng.integers(5, size=rng.integers(1, 9)):
      first, last = sorted((place(bad), place(bad)))
      if change == 0:
        bad[first] ^= 1 << int(rng.integers(8))
      elif change == 1:
        bad[first:first + 4] = rng.bytes(4)
      elif change == 2:
        bad[first:first + 2] = rng.choice([b'\0\0', b'\xff\xff', b'99', b'()', b"''"])
      elif change == 3:
        bad[first:min(last, first + 40)] = b''
      else:
        bad[first:first] = bad[first:min(last, first + 40)]
    yield bytes(bad)


def refusals(path: str, damaged: Iterator[bytes], load: Callable[[str], object]) -> int:
  """Counts the damaged files that are refused in one line; the others must load."""
  said = []
  for content in damaged:
    with open(path, 'wb') as file:
      file.write(content)
    try:
      load(path)
    except InputError as error:
      said.append(str(error))
  assert '\n' not in ''.join(said), said
  return len(said)
