"""How operations of a jaxpr pass on their arrays' axes; see axes.py.

A rule is (eqn, operands) -> results, lists of axes. What has no rule keeps all in order.
"""

from collections.abc import Callable
import functools

import numpy as np

from hmm_jax.models.own.axes import CONSTANT, ORDERED, axis, put_in_order, reshape, unify

ELEMENTWISE = frozenset((
    'abs', 'add', 'add_any', 'and', 'atan2', 'cbrt', 'ceil', 'clamp', 'convert_element_type',
    'copy', 'cos', 'cosh', 'div', 'eq', 'erf', 'erf_inv', 'erfc', 'exp', 'exp2', 'expm1', 'floor',
    'ge', 'gt', 'integer_pow', 'is_finite', 'le', 'log', 'log1p', 'logistic', 'lt', 'max', 'min',
    'mul', 'ne', 'neg', 'nextafter', 'not', 'or', 'pow', 'reduce_precision', 'rem', 'round',
    'rsqrt', 'select_n', 'sign', 'sin', 'sinh', 'sqrt', 'square', 'stop_gradient', 'sub', 'tan',
    'tanh', 'xor'))
REDUCTIONS = frozenset((
    'reduce_and', 'reduce_max', 'reduce_min', 'reduce_or', 'reduce_prod', 'reduce_sum'))


def rule(name: str) -> Callable:
  """Returns the rule of a primitive."""
  if name in ELEMENTWISE:
    return elementwise
  return reduction if name in REDUCTIONS else _RULES.get(name, in_order)


def in_order(eqn, operands):
  for operand in operands:
    for one in operand:
      put_in_order(one)
  return [[axis(n, ORDERED) for n in out.aval.shape] for out in eqn.outvars]


def elementwise(eqn, operands):
  whole = [operand for operand in operands if operand]  # Scalars are for all entries.
  # So is what has length 1 along an axis, (): operations may stretch it.
  return [[functools.reduce(unify, filter(None, of), ()) for of in zip(*whole, strict=True)]]


def reduction(eqn, operands):
  return [[one for i, one in enumerate(operands[0]) if i not in eqn.params['axes']]]


def _positions(eqn, operands):
  for i in eqn.params['axes']:
    put_in_order(operands[0][i])
  return reduction(eqn, operands)


def _dot_general(eqn, operands):
  (left, right), ((of_left, of_right), (each_left, each_right)) = (
      operands, eqn.params['dimension_numbers'])
  for i, j in zip(of_left, of_right, strict=True):
    unify(left[i], right[j])
  batch = [unify(left[i], right[j]) for i, j in zip(each_left, each_right, strict=True)]
  free = lambda side, *used: [one for i, one in enumerate(side) if i not in sum(used, ())]
  return [batch + free(left, tuple(of_left), tuple(each_left))
          + free(right, tuple(of_right), tuple(each_right))]


def _convolution(eqn, operands):
  (x, kernel), numbers, groups = (
      operands, eqn.params['dimension_numbers'], eqn.params['feature_group_count'])
  (_, features, *space), (outputs, inputs, *window) = numbers.lhs_spec, numbers.rhs_spec
  by_channel = groups == eqn.invars[0].aval.shape[features] == eqn.invars[1].aval.shape[outputs]
  if eqn.params['batch_group_count'] != 1 or (groups != 1 and not by_channel):
    return in_order(eqn, operands)
  for one in [x[i] for i in space] + [kernel[i] for i in window]:
    put_in_order(one)
  joined = unify(x[features], kernel[outputs if by_channel else inputs])
  out = [axis(n, ORDERED) for n in eqn.outvars[0].aval.shape]
  out[numbers.out_spec[0]] = x[numbers.lhs_spec[0]]
  out[numbers.out_spec[1]] = joined if by_channel else kernel[outputs]
  return [out]


def _broadcast(eqn, operands):
  shape = eqn.params['shape']
  out = [axis(n, CONSTANT) for n in shape]
  for i, one in zip(eqn.params['broadcast_dimensions'], operands[0], strict=True):
    out[i] = one or out[i]
  return [out]


def _tile(eqn, operands):
  return [[axis(times, CONSTANT) + one for times, one in zip(
      eqn.params['reps'], operands[0], strict=True)]]


def _reshape(eqn, operands):
  return [reshape(operands[0], eqn.outvars[0].aval.shape)]


def _transpose(eqn, operands):
  return [[operands[0][i] for i in eqn.params['permutation']]]


def _squeeze(eqn, operands):
  return [[one for i, one in enumerate(operands[0]) if i not in eqn.params['dimensions']]]


def _cut(eqn, operands):
  """A rule for parts of an array: an axis of which all is taken stays."""
  shape = eqn.outvars[0].aval.shape
  return [[_stays(one, before == after, after) for one, before, after in zip(
      operands[0], eqn.invars[0].aval.shape, shape, strict=True)]]


def _pad(eqn, operands):
  return [[_stays(one, not any(config), n) for one, config, n in zip(
      operands[0], eqn.params['padding_config'], eqn.outvars[0].aval.shape, strict=True)]]


def _stays(one, whole, size):
  if whole:
    return one
  put_in_order(one)
  return axis(size, ORDERED)


def _along(key):
  """Returns the rule of what works along some axes and changes no shape."""
  def along(eqn, operands):
    touched = eqn.params[key]
    for operand in operands:
      for i in (touched if isinstance(touched, tuple) else (touched,)):
        put_in_order(operand[i])
    return [list(operand) for operand in operands]
  return along


def _concatenate(eqn, operands):
  at = eqn.params['dimension']
  for operand in operands:
    put_in_order(operand[at])
  out = [functools.reduce(unify, of) if i != at else axis(eqn.outvars[0].aval.shape[at], ORDERED)
         for i, of in enumerate(zip(*operands, strict=True))]
  return [out]


def _split(eqn, operands):
  at = eqn.params['axis']
  put_in_order(operands[0][at])
  return [[axis(out.aval.shape[i], ORDERED) if i == at else one
           for i, one in enumerate(operands[0])] for out in eqn.outvars]


def _window(eqn, operands):
  """A rule for pooling: axes whose windows have one entry stay."""
  p = eqn.params
  settings = zip(p['window_dimensions'], p['window_strides'], p['padding'], p['base_dilation'],
                 strict=True)
  alone = [(*one,) == (1, 1, (0, 0), 1) for one in settings]
  return [[_stays(one, whole, n) for one, whole, n in zip(
      operands[0], alone, eqn.outvars[0].aval.shape, strict=True)]]


def _gather(eqn, operands):
  """A rule for looking up rows, such as those of an embedding: the axes within a row stay."""
  numbers, sizes = eqn.params['dimension_numbers'], eqn.params['slice_sizes']
  (table, index), shape = operands, eqn.invars[0].aval.shape
  if numbers.operand_batching_dims:
    return in_order(eqn, operands)
  for one in index:
    put_in_order(one)
  out = [axis(n, ORDERED) for n in eqn.outvars[0].aval.shape]
  kept = iter(numbers.offset_dims)
  for i, (one, size) in enumerate(zip(table, sizes, strict=True)):
    collapsed = i in numbers.collapsed_slice_dims
    whole = _stays(one, not collapsed and size == shape[i], size)
    if not collapsed:
      out[next(kept)] = whole
  return [out]


def constant(value) -> list:
  """Returns the axes of a constant: nothing depends on the order of equal entries."""
  value = np.asarray(value)
  same = value.size == 0 or (value == value.ravel()[0]).all()
  return [axis(n, CONSTANT if same else ORDERED) for n in value.shape]


_RULES = {
    'argmax': _positions, 'argmin': _positions, 'dot_general': _dot_general,
    'conv_general_dilated': _convolution, 'broadcast_in_dim': _broadcast, 'reshape': _reshape,
    'transpose': _transpose, 'squeeze': _squeeze, 'concatenate': _concatenate, 'split': _split,
    'tile': _tile,
    'slice': _cut, 'dynamic_slice': _cut, 'pad': _pad, 'gather': _gather,
    'reduce_window_max': _window, 'reduce_window_min': _window, 'reduce_window_sum': _window,
    'rev': _along('dimensions'), 'cumsum': _along('axis'), 'cumprod': _along('axis'),
    'cummax': _along('axis'), 'cummin': _along('axis'), 'cumlogsumexp': _along('axis'),
}
