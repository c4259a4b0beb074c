"""Exported models: a folder with the weights, and model.json with all that is needed to use them.

`model.json` has the keys of a blueprint, and
  weights        the file of the weights
  mixture        weights of M models' probabilities, whose tensors are [M, ...]; null for one model
  expects        what inputs must be, in words
  method, round, seed, view, client: where the model comes from
  normalized     how inputs are normalized, in words
  hmm_jax        the version that wrote it
"""

from collections.abc import Collection, Mapping
import contextlib
import os
from typing import Any

import numpy as np

from hmm_jax import __version__
from hmm_jax.experiment import blueprint
from hmm_jax.experiment.predictor import Predictor, expected
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.models import files
from hmm_jax.types import InputError, PyTree, SaveError

WEIGHTS = 'model.safetensors'
JSON = 'model.json'
_FROM = ('method', 'round', 'seed', 'view', 'client')


def described(about: Mapping[str, Any], *, mixture: np.ndarray | None = None,
              weights: str = WEIGHTS, **origin: Any) -> dict[str, Any]:
  """Returns the content of model.json.

  Args:
    about: a blueprint; other keys are left out.
    mixture: the weights of M models.
    weights: the file of the weights.
    **origin: method, round, seed, view and client, where they are known.
  """
  inputs = {entry['modality']: expected(entry, about['vocabulary']) for entry in about['inputs']}
  return {
      **{key: about[key] for key in (*blueprint.KEYS, *blueprint.NEWER)},
      'expects': '; '.join(f'{name}: {said}' if name else said for name, said in inputs.items()),
      'normalized': 'floats (x - mean) / std, of uint8 (x / 255 - mean) / std; null: as they are',
      'weights': weights, 'mixture': None if mixture is None else np.asarray(mixture).tolist(),
      **dict.fromkeys(_FROM), **origin, 'hmm_jax': __version__}


def check_free(out: str, names: Collection[str] = (JSON, WEIGHTS, 'merge.json', 'config.json')):
  """Raises InputError unless a folder can be written, and has no model yet: a file of these."""
  if '\0' in out or not out:
    raise InputError(f'got --out={out}; expected a path')
  taken = [name for name in names if os.path.lexists(os.path.join(out, name))]
  if taken or os.path.isfile(out):
    raise InputError(f'got --out={out}, where {taken[0] if taken else "a file"} exists; expected '
                     'a new folder')
  Workdir(out).check_writable('--out')


def write(out: str, variables: PyTree, about: Mapping[str, Any]):
  """Writes an exported model, all of it or nothing; `about` is the content of model.json.

  Raises:
    SaveError: the file system refuses.
  """
  path = os.path.join(out, about['weights'])
  try:
    files.save(path, files.flatten(variables))
    Workdir(out).write_json(JSON, dict(about))
  except SaveError:
    with contextlib.suppress(OSError):
      os.remove(path)
    raise


def read(folder: str) -> dict[str, Any]:
  """Returns the content of model.json.

  Raises:
    InputError: there is none, or it is damaged.
  """
  about = Workdir(folder).read_json(JSON, (*blueprint.KEYS, 'weights', 'mixture', 'client'))
  if about is None:
    raise InputError(f'got {folder}; expected the folder of a run, or an exported one')
  if os.path.basename(about['weights']) != about['weights']:
    raise InputError(f'got {folder} with weights={about["weights"]}; expected a file in it')
  return blueprint.NEWER | about


def load(folder: str) -> Predictor:
  """Loads an exported model.

  Raises:
    InputError: there is none, a file is damaged, or that of its network is gone.
  """
  about = read(folder)
  try:
    model = blueprint.model(about)
  except InputError as error:
    raise InputError(f'got {folder}, whose network is {about["network"]}: {error}') from error
  mixture = None if about['mixture'] is None else np.array(about['mixture'], np.float32)
  leading = () if mixture is None else (len(mixture),)
  path = os.path.join(folder, about['weights'])
  wanted = {name: (*leading, *x.shape) for name, x in files.flatten(model.shapes).items()}
  with files.opened(path) as tensors:
    check_shapes(path, tensors.shapes, wanted, f'model={about["network"]}')
    variables = files.unflatten({name: tensors.read(name) for name in wanted})
  return Predictor(about, variables, mixture, model=model)


def check_shapes(path: str, found: Mapping[str, tuple], wanted: Mapping[str, tuple], of: str):
  """Raises InputError with the first tensor in which a model differs by name or shape."""
  for name in [*wanted, *found]:
    if found.get(name) != wanted.get(name):
      ours, theirs = (shapes.get(name, 'none') for shapes in (wanted, found))
      raise InputError(f'got {path} with {name} of shape {theirs}; expected {ours}, as in {of}')
