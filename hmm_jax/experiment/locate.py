"""A saved model by its path: a file of tensors, an exported folder, or a run.

  FILE.safetensors, FILE.npz
  FOLDER               exported, or of a run: the model for all clients of the run's first seed
  FOLDER@SEED          that of another seed
  FOLDER@SEED/initial  the initial model of a seed
"""

from collections.abc import Generator, Mapping
import contextlib
import os
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from hmm_jax.data.files import DEFAULT_LIMIT, Limit
from hmm_jax.experiment import exported
from hmm_jax.experiment.saved import Run
from hmm_jax.models import files
from hmm_jax.types import InputError

_FORM = re.compile(r'(?P<folder>.+?)(@(?P<seed>[^@/]*))?(?P<initial>/initial)?/*')
# What the models of one network have in common.
_OF_A_NETWORK = ('network', 'settings', 'compute_dtype', 'vocabulary', 'classes')


@contextlib.contextmanager
def opened(path: str, limit: Limit = DEFAULT_LIMIT) -> Generator[files.Tensors]:
  """Opens a saved model as named tensors.

  Args:
    path: as above.
    limit: what a compressed file may unpack to.

  Raises:
    InputError: there is none, or it is damaged, or a mixture of several.
  """
  run, seed, initial = run_of(path)
  if run is None or initial:
    with files.opened(run.initial_file(seed) if run else _file(path), limit) as tensors:
      yield tensors
  else:
    named = files.flatten(run.model_for_all(seed)[1])
    yield files.Tensors({name: x.shape for name, x in named.items()}, named.__getitem__, {})


def tensors(path: str) -> dict[str, np.ndarray]:
  """Returns the tensors of a saved model by name, floats as float32.

  Raises:
    InputError: as of `opened`, or a tensor has NaN or infinity.
  """
  with opened(path) as model:
    named = {}
    for name in model.shapes:
      x = np.asarray(model.read(name))
      with np.errstate(over='ignore'):  # A float64 that float32 can't hold is no finite number.
        named[name] = x = x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
      if not np.isfinite(x).all():
        raise InputError(f'got {path} with NaN or infinity in {name}; expected finite numbers')
    return named


def about(path: str) -> Mapping[str, Any] | None:
  """Returns what is known of the network of a saved model; None of a mere file of tensors."""
  run, _, _ = run_of(path)
  if run:
    return run.about
  path = os.path.expanduser(path)
  return exported.read(path) if os.path.isdir(path) else None


def common_network(paths: list[str]) -> Mapping[str, Any] | None:
  """Returns what is known of the network of several models; None where it is not one."""
  found = [about(path) for path in paths]
  first = found[0]
  if first is None or any(one is None or network(one) != network(first) for one in found):
    return None
  return first


def network(known: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the part of what is known that tells networks apart."""
  shapes = [(entry['modality'], tuple(entry['shape'])) for entry in known['inputs']]
  as_json = lambda value: list(value) if isinstance(value, tuple) else value
  settings = {key: as_json(value) for key, value in known['settings'].items()}
  return {key: known[key] for key in _OF_A_NETWORK} | {'settings': settings, 'inputs': shapes}


def run_of(path: str) -> tuple[Run | None, int | None, bool]:
  """Returns the run that a path names, its seed or None, and whether its initial model is meant.

  Raises:
    InputError: a seed that is none of the run's.
  """
  path = os.path.expanduser(path)
  if os.path.isfile(path) or Run.has(path):
    return (Run.load(path) if Run.has(path) else None), None, False
  found = _FORM.fullmatch(path)
  if not found or not Run.has(found['folder']):
    return None, None, False
  run = Run.load(found['folder'])
  return run, run.read_seed(found['seed']), bool(found['initial'])


def _file(path: str) -> str:
  """Returns the file of an exported folder with a single model; another path stays."""
  path = os.path.expanduser(path)
  if not os.path.isdir(path):
    return path
  known = exported.read(path)
  if known['mixture'] is not None:
    raise InputError(f'got {path}, a mixture of {len(known["mixture"])} models; expected one model')
  return os.path.join(path, known['weights'])
