"""Losses of one's own in place of a task's."""

from collections.abc import Callable, Mapping
import textwrap
from typing import Any

import jax
import jax.numpy as jnp

from hmm_jax.registry import is_reference, load, suggestion
from hmm_jax.tasks import TASKS
from hmm_jax.types import InputError

_TRIED = 3  # examples of the batch on whose shapes a loss is tried


def chosen(name: str, about: Mapping[str, Any]) -> Callable | None:
  """Returns the loss that a config names, (outputs, y) -> [B]; None for the task's own.

  Of a regression, outputs and y are standardized.

  Args:
    name: '', of one of the task's losses, or a reference to a function.
    about: a blueprint, which says what the task is and how wide the outputs are.

  Raises:
    InputError: there is no such loss, or the function does not fit the task.
  """
  kind = TASKS[about['task']]
  if not name or name in kind.losses:
    return kind.losses.get(name)
  if not is_reference(name):
    known = [*kind.losses, 'package.module:FUNCTION', 'path/file.py:FUNCTION']
    raise InputError(f'got loss={name} with task={kind.name}; expected {", ".join(known)}'
                     + suggestion(name, kind.losses))
  function = load('loss', name, Callable)
  _check(name, function, about)
  return function


def _check(name, function, about):
  kind, width = TASKS[about['task']], about['classes']
  places = (about['inputs'][0]['shape'][0],) if kind.positions else ()
  outputs = jax.ShapeDtypeStruct((_TRIED, *places, width), jnp.float32)
  y = {'regression': outputs, 'multilabel': jax.ShapeDtypeStruct((_TRIED, width), jnp.uint8)}.get(
      kind.name, jax.ShapeDtypeStruct((_TRIED, *places), jnp.int32))
  wanted = 'expected a jittable function (outputs, y) -> [B] float32, the loss of each example'
  try:
    made = jax.eval_shape(function, outputs, y)
  except Exception as error:  # It is the user's own code.
    reason = textwrap.shorten(str(error), 200)
    raise InputError(f'got loss={name}, which fails on outputs {list(outputs.shape)} and y '
                     f'{list(y.shape)} with {type(error).__name__}: {reason}; {wanted}') from error
  if getattr(made, 'shape', None) != (_TRIED,) or not jnp.issubdtype(made.dtype, jnp.floating):
    said = f'{made.dtype} {list(made.shape)}' if hasattr(made, 'shape') else type(made).__name__
    raise InputError(f'got loss={name}, which returns {said} for {_TRIED} examples; {wanted}')
