"""Modules of flax.nnx as a `Net`."""

from collections.abc import Callable
import functools

from flax import nnx
from flax.core.tracers import current_trace
import jax
import jax.numpy as jnp

from hmm_jax.models.own.net import Net, by_example, is_watched, modes
from hmm_jax.types import InputError, PyTree

_COLLECTIONS = {'params': nnx.Param, 'batch_stats': nnx.BatchStat}

_AROUND = 'around'


def nnx_net(make: Callable[[nnx.Rngs], nnx.Module], *, mask_too: bool) -> Net:
  """Returns the `Net` of an nnx module.

  Its variables are named by their paths, the number of a list's element as a text.

  Args:
    make: (rngs) -> the module; called as module(x), with modes where it takes them.
    mask_too: whether the module is given the mask as well, if it takes one.
  """
  graph, *kinds, draws, other = _split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
  forms = dict(zip(_COLLECTIONS, kinds, strict=True))
  if found := {type(variable).__name__ for _, variable in nnx.to_flat_state(other)}:
    raise InputError(f'got variables of {", ".join(sorted(found))}; expected only Param and '
                     'BatchStat')

  def init(key):
    _, *states, _, _ = _split(make(nnx.Rngs(key)))
    named = {name: _named(state) for name, state in zip(_COLLECTIONS, states, strict=True)}
    return {name: tree for name, tree in named.items() if tree or name == 'params'}

  def merged(variables, key):
    states = [_filled(form, variables.get(name, {})) for name, form in forms.items()]
    return nnx.merge(graph, *states, _drawing(draws, key))

  def run(variables, x, *, train, mask=None, key=None, watch=None):
    module = merged(variables, key)
    module.set_attributes(deterministic=not train or key is None, use_running_average=not train,
                          raise_if_not_found=False)
    here = current_trace()

    def around(path, layer, call, inputs, kwargs):
      if isinstance(layer, nnx.BatchNorm) and mask is not None:
        kwargs = {'mask': by_example(mask, inputs)} | kwargs
      out = call(inputs, **kwargs)
      # What is inside of a transformation, such as nnx.remat, can't be handed out of it.
      if watch and current_trace() == here:
        watch(path, layer, inputs, out)
      return out

    for path, layer in list(nnx.iter_modules(module)):
      if is_watched(layer):
        layer.__class__ = _wrapped(type(layer))
        setattr(layer, _AROUND, functools.partial(around, '/'.join(map(str, path))))
    out = module(x, **modes(module.__call__, train=train, key=key, mask=mask if mask_too else None))
    if not train or 'batch_stats' not in variables:
      return out, variables
    return out, {**variables, 'batch_stats': _named(nnx.state(module, nnx.BatchStat))}

  def apply_layer(variables, path, layer, inputs):
    del layer
    layers = dict(nnx.iter_modules(merged(variables, None)))
    return next(one for at, one in layers.items() if '/'.join(map(str, at)) == path)(inputs)

  return Net(init, run, apply_layer)


@functools.cache
def _wrapped(kind: type) -> type:
  """Returns the class of a layer whose calls go through its attribute _AROUND."""

  def call(self, inputs, **kwargs):
    return getattr(self, _AROUND)(self, functools.partial(kind.__call__, self), inputs, kwargs)

  return type(kind.__name__, (kind,), {'__call__': call})


def _split(module):
  return nnx.split(module, *_COLLECTIONS.values(), nnx.RngState, ...)


def _named(state) -> PyTree:
  """Returns the arrays of a state as nested dicts of texts."""
  tree = {}
  for path, variable in nnx.to_flat_state(state):
    *above, last = map(str, path)
    inner = functools.reduce(lambda at, name: at.setdefault(name, {}), above, tree)
    inner[last] = variable.get_value()
  return tree


def _filled(form, tree):
  """Returns a state with the arrays of nested dicts of texts."""
  pick = lambda path: functools.reduce(lambda at, name: at[str(name)], path, tree)
  return nnx.from_flat_state([(path, variable.replace(pick(path)))
                              for path, variable in nnx.to_flat_state(form)])


def _drawing(form, key):
  """Returns the state of the random streams, each with a key of its own."""
  key = jax.random.key(0) if key is None else key  # Without a key nothing is drawn.
  fresh = lambda i, like: (jax.random.fold_in(key, i)
                           if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key)
                           else jnp.zeros(like.shape, like.dtype))
  return nnx.from_flat_state([(path, variable.replace(fresh(i, variable.get_value())))
                              for i, (path, variable) in enumerate(nnx.to_flat_state(form))])
