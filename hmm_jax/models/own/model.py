"""The `Model` of a `Net`: what methods ask of a network, derived by running and tracing it."""

import functools
from typing import Any, NamedTuple

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.models import layer_io
from hmm_jax.models.own import units
from hmm_jax.models.own.net import CONV, DENSE, NORM, Net
from hmm_jax.tasks.classification import CLASSIFICATION
from hmm_jax.types import InputError, Model, PyTree

HEAD = 'head'
# Of outputs after a permutation, as a share of the largest.
_TOLERANCE, _TOLERANCE_OF_HALF = 1e-4, 0.1
_CASTS = ('convert_element_type', 'copy', 'stop_gradient')


class Trace(NamedTuple):
  """What one run of a network in evaluation mode shows.

  jaxpr:    of (variables, x) -> outputs.
  outputs:  their shape and dtype.
  head:     (path, layer) of the dense layer whose outputs these are; None if there is none.
  momentum: {path: momentum} of BatchNorm.
  """

  jaxpr: core.ClosedJaxpr
  outputs: jax.ShapeDtypeStruct
  head: tuple[str, Any] | None
  momentum: dict[str, float]


def own_model(name: str, net: Net, example: PyTree, trace: Trace, dtype: jnp.dtype) -> Model:
  """Returns the `Model` of a `Net`.

  Args:
    name: what the config calls it, for errors.
    net: the network.
    example: the shapes and dtypes of a batch.
    trace: made by `traced`.
    dtype: what the network computes in.
  """
  head_path, head_layer = trace.head or (None, None)
  shapes = jax.eval_shape(net.init, jax.random.key(0))

  def cast(x):
    return jax.tree.map(lambda like, leaf: leaf.astype(like.dtype), example, x)

  def run(variables, x, train, mask, key, watch=None):
    if mask is None or not train:
      return net.run(variables, cast(x), train=train, key=key, watch=watch)
    counts = mask.any()
    mask = mask | ~counts  # A mean over no examples is NaN.
    out, updated = net.run(variables, cast(x), train=train, mask=mask, key=key, watch=watch)
    return out, {**updated, **tree.where(counts, tree.statistics(updated),
                                         tree.statistics(variables))}

  def apply(variables, x, *, train=False, mask=None, key=None):
    out, variables = run(variables, x, train, mask, key)
    return out.astype(jnp.float32), variables

  def features(variables, x, *, train=False, mask=None, key=None):
    _check_head(name, trace)
    seen = {}
    run(variables, x, train, mask, key, lambda path, _, inputs, out: seen.update({path: inputs}))
    return seen[head_path].astype(jnp.float32)

  def head(variables, features):
    _check_head(name, trace)
    return net.layer(variables, head_path, head_layer, features).astype(jnp.float32)

  def statistics(variables, x, *, mask=None):
    # After one training step from zero, running statistics are a known multiple of the batch's.
    running = tree.statistics(variables)
    _, updated = apply({**variables, **tree.zeros(running)}, x, train=True, mask=mask)

    def whole(where, leaf):
      path = '/'.join(step.key for step in where[1:-1])
      if trace.momentum.get(path, 1) == 1:
        raise InputError(f'got model={name} with running statistics in {path}, whose momentum is '
                         "unknown; expected those of flax's BatchNorm")
      return leaf / (1 - trace.momentum[path])

    return jax.tree.map_with_path(whole, tree.statistics(updated))

  def linear(variables, x):
    seen = {}

    def watch(path, layer, inputs, out):
      if isinstance(layer, DENSE) or (isinstance(layer, CONV) and layer_io.is_plain(layer)):
        seen[path] = layer_io.linear(layer, inputs, out)

    run(variables, x, False, None, None, watch)
    return seen

  def groups(variables):
    return jax.tree.map_with_path(
        lambda where, _: _group([step.key for step in where], head_path), variables)

  def modules():
    paths, _ = zip(*jax.tree.leaves_with_path(shapes), strict=True)
    names = [_group([step.key for step in path], head_path) for path in paths]
    return tuple(dict.fromkeys(names[i] for i in units.order_of_use(trace.jaxpr, len(names))))

  @functools.cache
  def symmetry():
    found = units.find_symmetry(trace.jaxpr, shapes, jax.eval_shape(linear, shapes, example))
    tolerance = _TOLERANCE if dtype == jnp.float32 else _TOLERANCE_OF_HALF
    if not units.check(found, shapes, lambda v, x: apply(v, x)[0], _random(example), tolerance):
      raise InputError(f'got model={name}, whose hidden units could not be told from its '
                       'operations; expected a merge that permutes no hidden units')
    return found

  return Model(init=jax.jit(net.init), apply=apply, features=features, head=head,
               statistics=statistics, groups=groups, modules=modules, linear=linear,
               symmetry=symmetry, task=CLASSIFICATION)


def traced(net: Net, example: PyTree) -> Trace:
  """Traces a network in evaluation mode."""
  dense, momentum, form = [], {}, []

  def go(variables, x):
    last = []

    def watch(path, layer, inputs, out):
      if isinstance(layer, NORM):
        momentum[path] = layer.momentum
      if isinstance(layer, DENSE):
        dense[:], last[:] = [(path, layer)], [out]

    out, _ = net.run(variables, x, train=False, watch=watch)
    form[:] = [out]
    return out, last

  jaxpr, shapes = jax.make_jaxpr(go, return_shape=True)(
      jax.eval_shape(net.init, jax.random.key(0)), example)
  outputs = shapes[0]
  is_head = dense and _origin(jaxpr.jaxpr, 0) is _origin(jaxpr.jaxpr, len(jaxpr.out_avals) - 1)
  return Trace(jaxpr, outputs, dense[0] if is_head else None, momentum)


def _random(example):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: (
      np.asarray(rng.normal(size=leaf.shape), leaf.dtype)
      if jnp.issubdtype(leaf.dtype, jnp.floating) else np.zeros(leaf.shape, leaf.dtype)), example)


def _origin(jaxpr, i):
  """Returns the variable that an output is, up to casts."""
  makers = {id(out): eqn for eqn in jaxpr.eqns for out in eqn.outvars}
  now = jaxpr.outvars[i]
  while (maker := makers.get(id(now))) and maker.primitive.name in _CASTS:
    now = maker.invars[0]
  return now


def _group(path, head):
  """Returns the module of a leaf; a leaf of the whole network is its own."""
  _, *modules, leaf = path
  owner = '/'.join(modules) or leaf
  if owner == head:
    return HEAD
  return f'{HEAD} (inner)' if owner == HEAD and head else owner


def _check_head(name, trace):
  if not trace.head:
    raise InputError(f'got model={name}, whose outputs are not those of a Dense or Linear layer; '
                     'expected such a head, as the method reads or keeps it apart')
