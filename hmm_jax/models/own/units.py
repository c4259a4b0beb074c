"""The permutation symmetry of any network, read off its jaxpr.

Each axis of each parameter starts as units that may be permuted. The operations of the network
then say which axes belong together, such as the outputs of a layer and the inputs of the next or
both sides of a residual sum, and which must keep their order: inputs, outputs, positions, pixels.
What is left is tried on random weights before it is used.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
import math

import jax
from jax.extend import core
import numpy as np

from hmm_jax.models.own.axes import MOVABLE, ORDERED, Axis, Units, axis, put_in_order, resolved
from hmm_jax.models.own.rules import constant, rule
from hmm_jax.types import PyTree, Symmetry

# Operations that are one call of a jaxpr, and where they keep it.
_CALLS = ('jit', 'pjit', 'closed_call', 'core_call', 'remat', 'remat2', 'checkpoint',
          'custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr')
_INNER = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')


def find_symmetry(jaxpr: core.ClosedJaxpr, shapes: PyTree,
                  writers: Collection[str]) -> Symmetry:
  """Returns the permutation symmetry of a network.

  A group is named by the dense layer or convolution that writes its units, else by a leaf and its
  axis: the heads of an attention, and the units within each, are such groups.

  Args:
    jaxpr: of (variables, x) -> outputs, ...
    shapes: of the variables.
    writers: the paths of dense layers and convolutions.
  """
  paths, leaves = zip(*jax.tree.leaves_with_path(shapes), strict=True)
  units = _units(jaxpr.jaxpr, jaxpr.consts, [leaf.shape for leaf in leaves])
  names, sizes = {}, {}
  for i in order_of_use(jaxpr, len(leaves)):
    _, *modules, leaf = (step.key for step in paths[i])
    owner = '/'.join(modules)
    for at, one in enumerate(units[i]):
      if one and one not in names:
        writes = leaf == 'kernel' and owner in writers and at == len(units[i]) - 1
        names[one] = owner if writes else '/'.join([*modules, f'{leaf}:{at}'])
        sizes[names[one]] = one.size
  axes = [tuple(names.get(one) for one in of) for of in units]
  return Symmetry(jax.tree.unflatten(jax.tree.structure(shapes), axes), sizes,
                  dict.fromkeys(sizes, 1))


def order_of_use(jaxpr: core.ClosedJaxpr, count: int) -> list[int]:
  """Returns the first `count` inputs of a jaxpr in the order in which they are used first."""
  numbers = {id(var): i for i, var in enumerate(jaxpr.jaxpr.invars[:count])}
  used = [*dict.fromkeys(_uses(jaxpr.jaxpr, numbers))]
  return used + [i for i in range(count) if i not in used]


def _uses(jaxpr, numbers) -> Iterator[int]:
  for eqn in jaxpr.eqns:
    given = [numbers.get(id(var)) for var in eqn.invars]
    if inner := _called(eqn):
      yield from _uses(inner, {id(var): i for var, i in zip(inner.invars, given, strict=True)
                               if i is not None})
    yield from (i for i in given if i is not None)


def _units(jaxpr, consts, shapes: Sequence[tuple]) -> list[list[Units | None]]:
  """Returns the units of each axis of each leaf; None for what keeps its order."""
  used = {id(var) for eqn in jaxpr.eqns for var in eqn.invars}
  leaves = [[axis(n, MOVABLE if id(var) in used else ORDERED) for n in shape]
            for var, shape in zip(jaxpr.invars, shapes)]
  inputs = [[axis(n, ORDERED) for n in var.aval.shape] for var in jaxpr.invars[len(shapes):]]
  outputs, *_ = _walk(jaxpr, [constant(value) for value in consts], leaves + inputs)
  for one in outputs:
    put_in_order(one)
  every = [one for leaf in leaves for one in leaf]
  for one in every:
    _only_the_innermost(one)
  return [[_moving(one) for one in leaf] for leaf in leaves]


def _walk(jaxpr, consts, operands) -> list[list[Axis]]:
  """Returns the axes of a jaxpr's outputs from those of its inputs."""
  known = {id(var): axes for var, axes in zip(
      (*jaxpr.constvars, *jaxpr.invars), (*consts, *operands), strict=True)}
  read = lambda var: constant(var.val) if hasattr(var, 'val') else known[id(var)]
  for eqn in jaxpr.eqns:
    given = [read(var) for var in eqn.invars]
    inner = _called(eqn)
    results = (_walk(inner, [constant(c) for c in _constants(eqn)], given) if inner
               else rule(eqn.primitive.name)(eqn, given))
    known |= {id(var): axes for var, axes in zip(eqn.outvars, results, strict=True)}
  return [read(var) for var in jaxpr.outvars]


def _called(eqn):
  """Returns the jaxpr that an operation calls, with the operation's own inputs; else None."""
  if eqn.primitive.name not in _CALLS:
    return None
  inner = next(eqn.params[key] for key in _INNER if key in eqn.params)
  return getattr(inner, 'jaxpr', inner)


def _constants(eqn):
  return next((getattr(eqn.params[key], 'consts', ()) for key in _INNER if key in eqn.params), ())


def _only_the_innermost(one: Axis):
  """Leaves at most the innermost units of an axis movable, which are all that `Symmetry` knows."""
  *outer, last = resolved(one) or (Units(1, ORDERED),)
  put_in_order((*outer,) if last.kind == MOVABLE else one)


def _moving(one: Axis) -> Units | None:
  parts = resolved(one)
  return parts[-1] if parts and parts[-1].kind == MOVABLE else None


def check(found: Symmetry, shapes: PyTree, apply: Callable, x: PyTree, tolerance: float) -> bool:
  """Tells whether a permutation of every group keeps the outputs, on random weights.

  Args:
    found: the symmetry.
    shapes: of the variables.
    apply: (variables, x) -> outputs.
    x: a batch of inputs.
    tolerance: of the outputs, as a share of the largest one.
  """
  rng = np.random.default_rng(0)
  # Kernels of either sign, in the size that keeps activations about 1; the rest about 1, as
  # variances are.
  draw = lambda leaf: (rng.normal(size=leaf.shape) / math.sqrt(max(1, leaf.size / leaf.shape[-1]))
                       if len(leaf.shape) > 1 else rng.uniform(0.5, 1.5, leaf.shape))
  variables = jax.tree.map(lambda leaf: np.asarray(draw(leaf), np.float32), shapes)
  orders = {group: rng.permutation(size) for group, size in found.size.items()}

  def move(leaf, groups):
    for at, group in enumerate(groups):
      if group:
        apart = leaf.reshape(*leaf.shape[:at], -1, found.size[group], *leaf.shape[at + 1:])
        leaf = np.take(apart, orders[group], at + 1).reshape(leaf.shape)
    return leaf

  moved = jax.tree.map(move, variables, found.axes)
  with jax.default_matmul_precision('highest'):
    # What is compiled before it is called runs at once, also while something else is traced.
    run = jax.jit(apply).lower(variables, x).compile({'xla_backend_optimization_level': '0'})
  before, after = (np.asarray(run(one, x)) for one in (variables, moved))
  return bool(np.abs(before - after).max() <= tolerance * np.abs(before).max())
