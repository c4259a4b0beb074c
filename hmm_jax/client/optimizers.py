"""Optimizers by name: those of optax, and functions of one's own."""

from collections.abc import Callable, Mapping
import inspect
from types import FunctionType
from typing import Any

import jax
import numpy as np
import optax

from hmm_jax.registry import is_reference, load, suggestion
from hmm_jax.types import InputError

_COMMON = ('sgd', 'adam', 'adagrad', 'yogi', 'adamw', 'lion', 'rmsprop')


def local_optimizer(settings: Any) -> optax.GradientTransformation:
  """Makes the clients' optimizer of the settings `local`, less clipping and schedules.

  It gets the learning rate, weight decay and momentum if its function takes them. For optax's
  without weight decay, the decayed weights are added to the gradient, as in SGD.

  Raises:
    InputError: there is no such optimizer, or it has no momentum.
  """
  name, key = settings.optimizer, 'local.optimizer'
  given = {'learning_rate': settings.lr, 'weight_decay': settings.weight_decay,
           'momentum': settings.momentum}
  if name == 'adamw':
    return optax.adamw(settings.lr, weight_decay=settings.weight_decay)
  if name == 'sgd':
    made, takes = optax.sgd(settings.lr, momentum=settings.momentum or None), ('momentum',)
  elif is_reference(name):
    function = load(key, name, FunctionType)
    return _of_function(key, name, function, given, _parameters(function))
  else:
    made = named_optimizer(key, name, given, others=(
        'package.module:FUNCTION, path/to/file.py:FUNCTION',))
    takes = _parameters(getattr(optax, name))
  if settings.momentum and 'momentum' not in takes:
    raise InputError(f'got local.momentum={settings.momentum} with {key}={name}, which has none; '
                     'expected 0')
  if settings.weight_decay and 'weight_decay' not in takes:
    return optax.chain(optax.add_decayed_weights(settings.weight_decay), made)
  return made


def _of_function(key: str, name: str, function: Callable, given: Mapping[str, Any],
                 takes: Mapping) -> optax.GradientTransformation:
  """Makes an optimizer by somebody's own function."""
  wanted = 'expected a function that returns an optax.GradientTransformation'
  try:
    made = function(**{one: value for one, value in given.items() if one in takes})
  except Exception as error:  # Whatever somebody's own code raises.
    text = (str(error).strip() or 'without a message').splitlines()[0]
    raise InputError(f'got {key}={name}, which fails with {type(error).__name__}: {text}; '
                     f'{wanted} when it is called with no more than {", ".join(given)}') from error
  if not isinstance(made, optax.GradientTransformation):
    raise InputError(f'got {key}={name}, which returns a {type(made).__name__}; {wanted}')
  if why := _unfit(made):
    raise InputError(f'got {key}={name}, {why}; {wanted} of gradients alone')
  return made


def named_optimizer(key: str, name: str, settings: Mapping[str, Any], *,
                    others: tuple[str, ...] = ()) -> optax.GradientTransformation:
  """Makes an optax optimizer by its name, with the settings that it accepts.

  Args:
    key: config key, for the error.
    name: name of a factory in optax.
    settings: values by argument name, with `learning_rate`; others than the factory's are ignored.
    others: further valid values of the key, for the error.

  Raises:
    InputError: optax has no such optimizer.
  """
  factory = getattr(optax, name, None)
  takes = _parameters(factory) if inspect.isfunction(factory) else {}
  if factory is None or 'learning_rate' not in takes:
    wanted = ', '.join([*others, f'an optax optimizer such as {", ".join(_COMMON)}'])
    raise InputError(f'got {key}={name}; expected {wanted}' + suggestion(name, others + _COMMON))
  made = factory(**{name: value for name, value in settings.items() if name in takes})
  if why := _unfit(made):
    raise InputError(f'got {key}={name}, {why}; expected an optimizer of gradients alone, such as '
                     f'{", ".join(_COMMON)}')
  return made


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(function).parameters


def _unfit(optimizer: optax.GradientTransformation) -> str:
  """Says why an optimizer can't be used here; '' if it can: it is tried on one weight."""
  weight = jax.ShapeDtypeStruct((1, 1), np.float32)
  try:
    state = jax.eval_shape(optimizer.init, weight)
    jax.eval_shape(optimizer.update, weight, state, weight)
  except Exception as error:  # Of whatever type the optimizer raises without what it wants.
    return f'which needs more than gradients ({str(error).partition(".")[0]})'
  keys = any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state))
  return 'which draws random numbers with a key of its own' if keys else ''
