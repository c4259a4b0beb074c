"""A flax module of one's own, its class, or a function that returns one, as a `Network`.

What a class or function takes is told by the names of its parameters: see `GIVEN`. Other
parameters with a plain default are settings of the network.
"""

from collections.abc import Callable, Mapping
import functools
import inspect
import math
from typing import Any

from flax import nnx
import flax.linen as nn
import jax
import jax.numpy as jnp

from hmm_jax.models.own.linen import linen_net
from hmm_jax.models.own.model import Trace, own_model, traced
from hmm_jax.models.own.net import Net, parameters, told
from hmm_jax.models.own.nnx import nnx_net
from hmm_jax.registry import Inputs, Network, Setting
from hmm_jax.types import InputError, Model, PyTree

# What is given to a parameter of one of these names, whether it has a default or not.
GIVEN = {
    'the number of outputs': (
        'classes', 'num_classes', 'n_classes', 'outputs', 'num_outputs', 'n_outputs', 'labels',
        'num_labels', 'n_labels', 'out_features', 'output_size', 'output_dim', 'out_dim', 'dout'),
    'the numbers of an example': (
        'inputs', 'num_inputs', 'n_inputs', 'in_features', 'input_size', 'input_dim', 'in_dim',
        'din'),
    'the shape of an example': ('input_shape', 'shape'),
    'the channels of an image': ('in_channels', 'input_channels'),
    'the side of a square image': ('image_size', 'img_size'),
    'the number of tokens': (
        'vocabulary', 'vocabulary_size', 'vocab', 'vocab_size', 'num_tokens', 'num_embeddings'),
    'the length of a sequence': (
        'length', 'max_length', 'max_len', 'seq_len', 'seq_length', 'sequence_length',
        'context_length', 'block_size'),
    'what is computed in': ('dtype', 'compute_dtype'),
    'the random streams of nnx': ('rngs',),
}
_WHAT = {name: what for what, names in GIVEN.items() for name in names}
_OF_LINEN = ('parent', 'name')  # Fields of every linen module.
_PLAIN = (bool, int, float, str)
_KINDS = 'a flax module (linen or nnx), its class, or a function that returns one'


def is_own(value: Any) -> bool:
  """Tells what a config may name as a network of one's own."""
  return isinstance(value, nn.Module) or inspect.isfunction(value) or isinstance(
      value, functools.partial) or (inspect.isclass(value) and issubclass(
          value, nn.Module | nnx.Module))


def own_network(reference: str, value: Any) -> Network:
  """Returns the record of a module, a class or a function that a config names.

  Raises:
    InputError: it needs an argument that is not known.
  """
  name, known = reference.rpartition(':')[2], {} if isinstance(value, nn.Module) else taken(value)
  settings = {}
  for key, one in known.items():
    if key in _WHAT:
      continue
    default = float(one.default) if _is_float(one) else one.default
    if one.default is one.empty:
      given = ', '.join(f'{names[0]} ({what})' for what, names in GIVEN.items())
      raise InputError(f'got model={reference}, which needs {key}; expected a default of it, or a '
                       f'name of what is given, such as {given}')
    if _is_plain(default):
      settings[key] = Setting(default, f'of {name}')
  return Network(name, functools.partial(_build, reference, value), settings,
                 takes=('arrays', 'tokens', 'modalities'), summary=_summary(value))


def taken(factory: Callable) -> Mapping[str, inspect.Parameter]:
  """Returns the parameters of a class or function by their names."""
  found = parameters(factory.__init__ if inspect.isclass(factory) else factory)
  hidden = ('self', *_OF_LINEN) if inspect.isclass(factory) else ()
  return {name: one for name, one in found.items() if name not in hidden}


def _is_float(one):
  return one.annotation in (float, 'float') and type(one.default) is int


def _is_plain(default):
  if isinstance(default, tuple):
    return all(type(one) in _PLAIN and type(one) is type(default[0]) for one in default)
  return type(default) in _PLAIN


def _summary(value):
  if inspect.isfunction(value):
    return (value.__doc__ or '').strip().partition('\n')[0].rstrip('.')
  text = (getattr(value, '__dict__', {}).get('__doc__') or '').strip().partition('\n')[0]
  generated = text.startswith(f'{getattr(value, "__name__", "")}(')  # By a dataclass.
  return '' if generated else text.rstrip('.')


def _build(reference: str, value: Any, inputs: Inputs, settings) -> Model:
  """Builds the network, and tries it on the shape of the inputs.

  Raises:
    InputError: the module fails, or its outputs don't fit.
  """
  what, kind = f'got model={reference}, which fails', 'tokens' if inputs.vocabulary else 'floats'
  example = _example(inputs)
  takes = {} if isinstance(value, nn.Module) else taken(value)
  if inputs.dtype != jnp.float32 and not set(takes) & set(GIVEN['what is computed in']):
    raise InputError(f'got compute_dtype={jnp.dtype(inputs.dtype).name} with model={reference}, '
                     'which has no parameter dtype; expected float32')
  with told(f'{what} when it is made', _KINDS):
    make, linen = _maker(reference, value, inputs, dict(settings))
  with told(f'{what} on inputs of shape {inputs.shape} ({kind})', 'a module that takes such '
            'inputs, (x) -> outputs'):
    net = _net(make, linen, example)
    trace = traced(net, example)
  _check_outputs(reference, trace, inputs)
  return own_model(reference, net, example, trace, inputs.dtype)


def _maker(reference, value, inputs, settings) -> tuple[Callable, nn.Module | None]:
  """Returns (rngs) -> the module, and the module itself if it is one of linen."""
  if isinstance(value, nn.Module):
    return lambda rngs: value, value
  given = {name: _given(reference, name, one, inputs) for name, one in taken(value).items()
           if name in _WHAT and name != 'rngs'}
  given = {name: one for name, one in given.items() if one is not None} | settings
  draws = 'rngs' in taken(value)
  make = lambda rngs: value(**given, **({'rngs': rngs} if draws else {}))
  made = []
  jax.eval_shape(lambda: made.append(make(nnx.Rngs(0))))  # No array is made.
  if isinstance(made[0], nn.Module):
    return make, make(nnx.Rngs(0))
  if not isinstance(made[0], nnx.Module):
    raise InputError(f'got a {type(made[0]).__name__}; expected {_KINDS}')
  if not draws:
    raise InputError('got an nnx module without a parameter rngs; expected one, by which each seed '
                     'draws weights of its own')
  return make, None


def _net(make, linen, example) -> Net:
  """Returns the net, which is given the mask of examples, too, if it takes [B] bool."""
  of = lambda mask_too: (linen_net(linen, example, mask_too=mask_too) if linen is not None
                         else nnx_net(make, mask_too=mask_too))
  try:
    net = of(True)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    for size in (5, 7):  # A mask of something else, such as of positions, fits not both.
      jax.eval_shape(lambda v, x, m: net.run(v, x, train=True, mask=m)[0], shapes,
                     *jax.tree.map(lambda leaf, n=size: jax.ShapeDtypeStruct(
                         (n, *leaf.shape[1:]), leaf.dtype), (example, _MASK)))
  except Exception:  # Whatever somebody's own code raises; it is raised again without a mask.
    return of(False)
  return net


_MASK = jax.ShapeDtypeStruct((1,), jnp.bool)


def _example(inputs: Inputs) -> PyTree:
  """Returns the shapes and dtypes of a batch of two."""
  dtype = jnp.int32 if inputs.vocabulary else inputs.dtype
  return jax.tree.map(lambda shape: jax.ShapeDtypeStruct((2, *shape), dtype), inputs.shape,
                      is_leaf=lambda shape: isinstance(shape, tuple))


def _given(reference: str, name: str, one: inspect.Parameter, inputs: Inputs) -> Any:
  """Returns what a parameter of one of these names is given; None for its default."""
  shape: tuple[int, ...] = inputs.shape if isinstance(inputs.shape, tuple) else ()
  image, tokens = len(shape) == 3, inputs.vocabulary > 0
  known = {
      'the number of outputs': inputs.classes,
      'the numbers of an example': math.prod(shape) if shape else None,
      'the shape of an example': inputs.shape,
      'the channels of an image': shape[-1] if image else None,
      'the side of a square image': shape[0] if image and shape[0] == shape[1] else None,
      'the number of tokens': inputs.vocabulary if tokens else None,
      'the length of a sequence': shape[0] if tokens else None,
      'what is computed in': inputs.dtype,
  }[_WHAT[name]]
  if known is None and one.default is one.empty:
    raise InputError(f'got inputs of shape {inputs.shape} for {name}, {_WHAT[name]}; expected '
                     'inputs that have it, or a default')
  return known


def _check_outputs(reference: str, trace: Trace, inputs: Inputs):
  """Raises InputError unless the outputs are what the task needs."""
  outputs = trace.outputs
  if not hasattr(outputs, 'shape'):
    raise InputError(f'got model={reference} that returns a {type(outputs).__name__}; expected '
                     'one array of outputs')
  length = inputs.shape[:1] if inputs.positions else ()
  wanted = (*length, inputs.classes)
  if outputs.shape != (2, *wanted) or not jnp.issubdtype(outputs.dtype, jnp.floating):
    words = lambda shape: '[' + ', '.join(['B', *map(str, shape)]) + ']'
    got = words(outputs.shape[1:]) if outputs.shape[:1] == (2,) else f'{list(outputs.shape)} for 2'
    raise InputError(f'got model={reference} with outputs {got} {outputs.dtype}; expected '
                     f'{words(wanted)} floats, as the data has {inputs.classes} outputs')
