"""Laws of merge operators: what every one obeys, whatever it computes.

A law takes an `Operator` and raises AssertionError with a sentence that says what is broken. It
merges 3 perceptrons (2 where the operator takes exactly two), on a handful of examples where it
needs data, with the default settings.
"""

from collections.abc import Callable
from functools import cache
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax import tree
from hmm_jax.models.mlp import mlp
from hmm_jax.registry import NEEDS, REQUIRED, Operator, Setting
from hmm_jax.types import Examples, InputError, Model, PyTree

EXAMPLES, BATCH = 24, 8
DRAWS = 200  # keys over which a merge by chance is averaged
FAR = 1e-4  # what rounding never makes of a toy's numbers, which are about 1


def copies_merge_to_the_model(operator: Operator):
  """Copies of one model, which is their base as well, merge to that model."""
  model, count = base(), members(operator)
  merged = compiled(operator)(tree.repeat(model, count), model, key(0), examples())
  gap, where = _largest_difference(merged, model['params'])
  if gap > 1e-3:
    ratio = tree.dot(merged, model['params']) / tree.dot(model['params'], model['params'])
    why = (f': this is {ratio:.3g} times the model, a sum of the {count} and not their mean'
           if abs(ratio - count) < 1e-3 else '')
    raise AssertionError(f'{count} copies of one model merge to another model{why} (a difference '
                         f'of {gap:.2g} in {where})')


def models_matter(operator: Operator):
  """Models that have learned something merge to something else than their base."""
  gap, _ = _largest_difference(merge(operator), base()['params'])
  assert gap > FAR, 'models that differ from their base merge to this base: nothing of them is left'


def order_does_not_matter(operator: Operator):
  """The same models in another order merge to the same model, on average if it is by chance."""
  order = np.roll(np.arange(members(operator)), 1)
  models = tree.take(stacked(operator), order)
  merged = compiled(operator)(models, base(), key(0), examples())
  gap, where = _largest_difference(merged, merge(operator))
  if gap < 1e-3:
    return
  # Two means over keys, in standard errors of their difference.
  draws = [[compiled(operator)(own, base(), key(number), examples()) for number in numbers]
           for own, numbers in ((stacked(operator), range(DRAWS)),
                                (models, range(DRAWS, 2 * DRAWS)))]
  draws = [jax.tree.map(lambda *leaves: np.stack(leaves), *drawn) for drawn in draws]
  for a, b in zip(*map(jax.tree.leaves, draws), strict=True):
    error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / DRAWS)
    assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) <= 6 * error + 1e-3).all(), (
        f'the same models in another order merge to another model (a difference of {gap:.2g} in '
        f'{where})')


def structure_stays(operator: Operator):
  """The merged parameters have the structure, the shapes and the types of a model's."""
  one = jax.tree.map(jnp.asarray, base())
  stack = tree.repeat(one, members(operator))
  _same_shapes(jax.eval_shape(compiled(operator), stack, one, key(0), examples()), one['params'])
  if 'network' not in operator.needs:  # Those that run a network get float32.
    low = _low(one)
    got = jax.eval_shape(compiled(operator), tree.repeat(low, members(operator)), low, key(0),
                         examples())
    _same_shapes(got, low['params'])


def half_precision_is_rounded_once(operator: Operator):
  """Parameters in half precision are merged in float32, and rounded at the end."""
  if 'network' in operator.needs:
    return
  # So far from the base that differences have more digits than half precision holds.
  models, start = _low(tree.scale(-2.7, stacked(operator))), _low(base())
  wide = lambda low: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), low)
  got = compiled(operator)(models, start, key(0), examples())
  exact = compiled(operator)(wide(models), wide(start), key(0), examples())
  for (path, x), y in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(exact), strict=True):
    half = float(jnp.finfo(x.dtype).eps) / 2
    y = np.asarray(y, np.float64)
    assert (np.abs(np.asarray(x, np.float64) - y) <= 1.01 * half * np.abs(y) + 1e-6).all(), (
        f'{jax.tree_util.keystr(path)} in {x.dtype} is not the rounded merge in float32: it is '
        f'computed in {x.dtype}')


def compiled_is_eager(operator: Operator):
  """A compiled merge gives what an eager one gives."""
  eager = call(operator, make(operator), stacked(operator), base(), key(0), examples())
  gap, where = _largest_difference(eager, merge(operator))
  assert gap < 1e-3, f'a compiled merge differs from an eager one by {gap:.2g} in {where}'


def equal_keys_repeat(operator: Operator):
  """An equal key repeats a merge exactly."""
  again = compiled(operator)(stacked(operator), base(), key(0), examples())
  gap, where = _largest_difference(again, merge(operator))
  assert gap == 0, f'the same key gives another merge, with a difference of {gap:.2g} in {where}'


def labels_are_needed_where_they_matter(operator: Operator):
  """Labels change the merge just where the record says that it needs them."""
  if 'data' not in operator.needs:
    return
  _, labels = examples()
  other = Examples(examples().x, (labels + 1) % 3)
  gap, where = _largest_difference(
      compiled(operator)(stacked(operator), base(), key(0), other), merge(operator))
  if 'labels' in operator.needs:
    assert gap > FAR, "the record needs 'labels', but other labels give the same merge"
  else:
    assert gap < FAR, (f"labels are read (other ones make a difference of {gap:.2g} in {where}); "
                       "the record must need 'labels'")


def padding_is_not_read(operator: Operator):
  """Examples that no index names change nothing, whatever stands in the place of -1."""
  if 'data' not in operator.needs:
    return
  x, labels = examples()
  unread = np.isin(np.arange(EXAMPLES), (0, EXAMPLES - 1))
  other = Examples(x + 5 * unread[:, None], (labels + unread) % 3)
  gap, where = _largest_difference(
      compiled(operator)(stacked(operator), base(), key(0), other), merge(operator))
  assert gap < FAR, (f'examples that no index names are read (others make a difference of '
                     f'{gap:.2g} in {where}); expected a mask where an index is -1')


def needs_are_known(operator: Operator):
  """What the record needs is of NEEDS, complete, and it has a summary of one line."""
  needs = {*operator.needs}
  unknown = ', '.join(sorted(needs - NEEDS.keys()))
  assert not unknown, f'the record needs {unknown}; expected some of {", ".join(NEEDS)}'
  ways = ['any init', 'shared init', 'base']
  assert len(needs & {*ways}) == 1, (
      f'the record must need exactly one of {", ".join(ways)}: it says how models have to start')
  for need, other in (('labels', 'data'), ('data', 'network')):
    assert need not in needs or other in needs, f'the record needs {need}, so it needs {other}, too'
  assert operator.summary, 'the record has no summary'
  is_line = len(operator.summary) < 80 and '\n' not in operator.summary
  assert is_line, 'the summary is no short line'


def settings_are_the_arguments(operator: Operator):
  """The settings are the arguments of `make`, with the same defaults."""
  arguments = inspect.signature(operator.make).parameters
  for name in arguments.keys() - operator.settings.keys():
    raise AssertionError(f'make takes {name}, which is no setting')
  for name, setting in operator.settings.items():
    assert name in arguments, f'{name} is a setting, but make does not take it'
    default = arguments[name].default
    default = REQUIRED if default is inspect.Parameter.empty else default
    is_same = type(default) is type(setting.default) and default == setting.default
    assert is_same, (
        f'the setting {name} is {setting.default} by default, but for make it is {default}')


def impossible_settings_are_refused(operator: Operator):
  """Values that a setting can't have raise InputError, which names it."""
  for name, setting in operator.settings.items():
    for value in _impossible(setting):
      _refused(name, value, lambda name=name, value=value: make(operator, **{name: value}))
  if 'weights' in operator.settings:
    count = members(operator)
    for weights in ([1 / (count + 1)] * (count + 1), [math.nan] + [1 / count] * (count - 1)):
      _refused('weights', weights, lambda weights=weights: jax.eval_shape(
          lambda *args: call(operator, make(operator, weights=weights), *args),
          stacked(operator), base(), key(0), examples()))


LAWS: dict[str, Callable[[Operator], None]] = {
    'copies of one model merge to that model': copies_merge_to_the_model,
    'the models matter': models_matter,
    'the order of the models does not matter': order_does_not_matter,
    'parameters keep their structure, shapes and types': structure_stays,
    'half precision is rounded once': half_precision_is_rounded_once,
    'compiled is eager': compiled_is_eager,
    'equal keys repeat a merge': equal_keys_repeat,
    'labels matter where they are needed': labels_are_needed_where_they_matter,
    'padding is not read': padding_is_not_read,
    'needs are known': needs_are_known,
    'settings are the arguments': settings_are_the_arguments,
    'impossible settings are refused': impossible_settings_are_refused,
}


@cache
def network() -> Model:
  """Returns a perceptron with 6 hidden units on inputs [4], of 3 classes."""
  return mlp((6,), classes=3, input_shape=(4,))


@cache
def examples() -> Examples:
  """Returns examples of three classes that are apart, but overlap."""
  rng = np.random.default_rng(0)
  labels = np.arange(EXAMPLES, dtype=np.int32) % 3
  centers = rng.normal(size=(3, 4))
  x = 1.5 * centers[labels] + rng.normal(size=(EXAMPLES, 4))
  return Examples(jnp.asarray(x, jnp.float32), jnp.asarray(labels))


@cache
def base() -> PyTree:
  """Returns the variables that the models start from."""
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(network().init, key(0))
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


@cache
def _models() -> PyTree:
  """Returns 3 models: what they have learned is half their own, and half what all of them did."""
  rng = np.random.default_rng(2)
  learned = lambda x: 0.2 * (rng.normal(size=x.shape) + rng.normal(size=(3, *x.shape)))
  return jax.tree.map(lambda x: jnp.asarray(x[None] + learned(x), jnp.float32), base())


def members(operator: Operator) -> int:
  """Returns how many models a law merges."""
  return 2 if 'two models' in operator.needs else 3


def stacked(operator: Operator) -> PyTree:
  """Returns the variables of the models."""
  return tree.take(_models(), np.arange(members(operator)))


def key(number: int) -> jax.Array:
  """Returns a key."""
  return jax.random.key(number)


def make(operator: Operator, **settings) -> Callable:
  """Makes the merge; what has no default is given a value that is possible."""
  given = {name: _possible(name, setting, members(operator))
           for name, setting in operator.settings.items() if setting.default is REQUIRED}
  return operator.make(**given | settings)


def call(operator: Operator, how: Callable, models: PyTree, start: PyTree, key: jax.Array,
         examples: Examples) -> PyTree:
  """Calls a merge with what its operator needs."""
  start = start if 'base' in operator.needs else None
  if 'network' in operator.needs:
    indices = jnp.append(jnp.arange(1, EXAMPLES - 1), jnp.array([-1, -1])).reshape(-1, BATCH)
    return how(network(), models, start, examples, indices, key)
  return how(models['params'], start and start['params'], key)


def compiled(operator: Operator) -> Callable:
  """Returns (models, base, key, examples) -> params, compiled once for all laws."""
  known = _COMPILED.get(id(operator))
  if known is None or known[0] is not operator:
    how = make(operator)
    known = operator, jax.jit(lambda *args: call(operator, how, *args))
    _COMPILED[id(operator)] = known
  return known[1]


def merge(operator: Operator) -> PyTree:
  """Merges the models."""
  return compiled(operator)(stacked(operator), base(), key(0), examples())


_COMPILED: dict[int, tuple[Operator, Callable]] = {}


def _possible(name: str, setting: Setting, count: int) -> Any:
  """Returns a value that a setting can have."""
  if name == 'weights':
    return [1 / count] * count
  bounds = [bound for bound in (setting.at_least, setting.at_most) if bound is not None]
  for value in [*setting.choices, *bounds, 0.5, 1.0, *(
      bound + step for bound, step in ((setting.above, 1), (setting.below, -1))
      if bound is not None)]:
    try:
      setting.check(name, value)
    except InputError:
      continue
    return value
  raise AssertionError(f'the setting {name} has no default, no choices and no bounds')


def _impossible(setting: Setting) -> list:
  """Returns values that a setting can't have."""
  if setting.choices:
    return ['no such choice']
  values = [bound for bound in (setting.above, setting.below) if bound is not None]
  values += [bound + step for bound, step in ((setting.at_least, -1), (setting.at_most, 1))
             if bound is not None]
  return values + ([math.nan, math.inf] if isinstance(setting.default, float) else [])


def _refused(name: str, value: Any, tried: Callable):
  """Says that a value raises InputError, which names the setting."""
  try:
    tried()
  except Exception as caught:
    error = caught
  else:
    raise AssertionError(f'{name}={value} is not refused; expected InputError')
  assert isinstance(error, InputError), (
      f'{name}={value} raises {type(error).__name__}; expected InputError')
  assert f'got {name}=' in str(error), (
      f'the error for {name}={value} does not say "got {name}=...": {error}')


def _low(variables: PyTree) -> PyTree:
  """Casts kernels to bfloat16 and everything else to float16."""
  return jax.tree.map_with_path(lambda path, x: jnp.asarray(
      x, jnp.bfloat16 if path[-1].key == 'kernel' else jnp.float16), variables)


def _same_shapes(got: PyTree, wanted: PyTree):
  """Compares structures, shapes and types."""
  assert jax.tree.structure(got) == jax.tree.structure(wanted), (
      'the merged parameters have another structure than those of a model')
  describe = lambda x: f'{x.dtype}{list(x.shape)}'
  for (path, x), y in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
    assert (x.shape, x.dtype) == (y.shape, y.dtype), (
        f'{jax.tree_util.keystr(path)} is {describe(x)} after the merge, expected {describe(y)}')


def _largest_difference(got: PyTree, wanted: PyTree) -> tuple[float, str]:
  """Returns the largest difference of an entry, inf if one is not finite, and where it is."""
  _same_shapes(got, wanted)
  gap = lambda x, y: np.nan_to_num(np.abs(np.asarray(x) - np.asarray(y)).max(), nan=math.inf)
  gaps = jax.tree.map(gap, got, wanted)
  value, path = max((float(x), jax.tree_util.keystr(path))
                    for path, x in jax.tree.leaves_with_path(gaps))
  return value, path
