"""Data that a program has in memory, and gives to `hmm_jax.run`."""

from hmm_jax.registry import Source
from hmm_jax.types import InputError


def load(path: str, settings, data_dir: str):
  """Refuses: such data can't be loaded again.

  Raises:
    InputError: always.
  """
  raise InputError(f'got dataset=given:{path}, data that a Python program gave to the run; '
                   'expected hmm_jax.run(..., data=...), or a data set that can be loaded')


SOURCE = Source('given', load, path=True,
                summary='data in memory: `hmm_jax.run(..., data=hmm_jax.dataset(x, y))`')
