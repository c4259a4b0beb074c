"""What a flax module, linen or nnx, looks like to the rest: a `Net`; and how a module is called."""

from collections.abc import Callable, Mapping
import contextlib
import inspect
from typing import Any, NamedTuple

from flax import nnx
import flax.linen as nn
import jax.numpy as jnp

from hmm_jax.types import Array, InputError

DENSE = nn.Dense | nnx.Linear
CONV = nn.Conv | nnx.Conv
NORM = nn.BatchNorm | nnx.BatchNorm
# What a call may name its modes: True in training, and False in training.
_TRAINING = ('train', 'training', 'is_training')
_EVALUATING = ('deterministic', 'use_running_average')
_MODES = (*_TRAINING, *_EVALUATING, 'mask')


class Net(NamedTuple):
  """A flax module as pure functions.

  BatchNorm, wherever it is, is told which examples count. Layers inside a transformation, such
  as `remat` or `scan`, are not watched.

  init:  (key) -> variables.
  run:   (variables, x, *, train, mask=None, key=None, watch=None) -> (outputs, variables);
         `watch(path, layer, inputs, outputs)` sees dense layers, convolutions and BatchNorm.
  layer: (variables, path, layer, inputs) -> the outputs of a layer that was watched.
  """

  init: Callable
  run: Callable
  layer: Callable


def is_watched(layer: Any) -> bool:
  """Tells the layers that are watched from others."""
  return isinstance(layer, DENSE | CONV | NORM)


def modes(call: Callable, *, train: bool, key: Any, mask: Any = None) -> dict[str, Any]:
  """Returns the arguments, beside the inputs, that a module's call takes.

  Raises:
    InputError: it needs another one.
  """
  known = (dict.fromkeys(_TRAINING, train) | dict.fromkeys(_EVALUATING, not train)
           | {'deterministic': not train or key is None, 'mask': mask})
  others = [*parameters(call).items()][1:]
  for name, one in others:
    if name not in known and one.default is one.empty:
      raise InputError(f'got a call that needs {name}; expected one that needs its inputs, and '
                       f'no more than {", ".join(_MODES)}')
  return {name: known[name] for name, one in others
          if name in known and (name != 'mask' or mask is not None or one.default is one.empty)}


def parameters(call: Callable) -> Mapping[str, inspect.Parameter]:
  """Returns the parameters of a function by their names, without *args and **kwargs."""
  return {name: one for name, one in inspect.signature(call).parameters.items()
          if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}


def by_example(mask: Array, x: Array) -> Array:
  """Returns the mask [B] of examples for x [B, ...], or [B T, ...], as BatchNorm takes it."""
  rows = jnp.repeat(mask, x.shape[0] // len(mask), total_repeat_length=x.shape[0])
  return rows.reshape(-1, *[1] * (x.ndim - 1))


@contextlib.contextmanager
def told(what: str, wanted: str):
  """Turns whatever somebody's own code raises into one line: got WHAT with ...; expected ..."""
  try:
    yield
  except Exception as error:
    text = (str(error).strip() or 'without a message').splitlines()[0]
    if isinstance(error, InputError):
      raise InputError(f'{what}: {text}') from error
    raise InputError(f'{what} with {type(error).__name__}: {text}; expected {wanted}') from error
