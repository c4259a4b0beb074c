"""Merges saved models: python -m hmm_jax.merge --method=NAME --models=A,B,... --out=DIR

A model is a file (safetensors, npz) or the folder of a run, FOLDER@SEED for another seed than its
first. --help lists the flags, --method=list the methods and what each one needs. Bad input is one
line on stderr and exit code 2, and nothing is written.
"""

from collections.abc import Callable, Sequence
import itertools
import json
import os

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax import bench, saved, tensors, tree, variants
from hmm_jax.log import Screen, fail
from hmm_jax.merging import calibrate, statistics
from hmm_jax.merging.operators import OPERATORS, REQUIRED, Operator
from hmm_jax.merging.search import minibatches
from hmm_jax.types import Array, InputError, Key, PyTree

METHOD = flags.DEFINE_string('method', None, 'Which operator; list shows them all.')
MODELS = flags.DEFINE_list('models', [], 'What is merged: files, or folders of runs.')
BASE = flags.DEFINE_string('base', None, 'What all were trained from, for methods that need it.')
WEIGHTS = flags.DEFINE_list('weights', [], 'One number a model, for methods that take them.')
SET = flags.DEFINE_multi_string('set', [], 'A setting of the method, key=value; may be repeated.')
OUT = flags.DEFINE_string('out', None, 'Folder for merged.safetensors (or .npz) and merge.json.')
SEED = flags.DEFINE_integer('seed', 0, 'Of what is drawn.', lower_bound=0)
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Merge and show, but write nothing.')
EVALUATE = flags.DEFINE_string(
    'evaluate', None, 'Config file or folder of a run, for the network and the data: scores all '
    'models and the merged one, and serves methods that need data.')

# Models of one start have weights with an angle in common; fewer of them say nothing.
_UNRELATED, _ENOUGH = 0.1, 1000
_RUNNING = ('running_mean', 'running_var', 'num_batches_tracked')
_BATCH = 64  # rows at a time, of methods that need data


def main(argv: Sequence[str]):
  """Does what the flags say; absl has parsed them."""
  if len(argv) > 1:
    raise InputError(f'got argument {argv[1]}; expected only --flags')
  screen = Screen()
  if METHOD.value == 'list':
    screen.table('methods', ['method', 'needs', 'settings'],
                 [[name, ', '.join(operator.needs), _shown(operator.settings)]
                  for name, operator in OPERATORS.items()])
    return
  logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that is not there.
  operator, merge = chosen()
  check_needs(operator)
  out = None if DRY_RUN.value else free_folder(OUT.value)
  on = bench.bench(EVALUATE.value) if EVALUATE.value else None
  stacked = saved.load(MODELS.value)
  base = BASE.value and saved.load([BASE.value], like=(MODELS.value[0], stacked))
  if base:
    check_base(stacked, base)
  if on:
    bench.check_like(on, tensors.unflatten(tree.take(stacked, 0)), MODELS.value[0])

  merged = combine(operator, merge, stacked, base, on)
  screen.table(f'{METHOD.value} of {len(MODELS.value)} models',
               ['tensor', 'shape', 'what it got', 'change against the mean'],
               [describe(name, merged[name], stacked[name]) for name in merged])
  if on:
    screen.table('on the test rows', ['model', 'accuracy', 'loss'], judge(on, stacked, merged))
  if out:
    write(out, merged)
    screen.say(f'wrote {out}')


def chosen() -> tuple[Operator, Callable]:
  """Returns the operator of --method, and it with its settings.

  Raises:
    InputError: there is none, or a setting does not suit it.
  """
  name = METHOD.value
  if name not in OPERATORS:
    raise InputError(f'got --method={name}; expected one of {", ".join(OPERATORS)}, or list')
  operator = OPERATORS[name]
  given = variants.settings(SET.value)
  if WEIGHTS.value:
    given['weights'] = numbers('weights', WEIGHTS.value)
  known = operator.settings
  for key in given:
    if key not in known:
      raise InputError(f'got the setting {key} with --method={name}; expected '
                       f'{_shown(known) or "none"}')
  for key, default in known.items():
    if default is REQUIRED and key not in given:
      raise InputError(f'got --method={name} without {key}; expected --{key}=... or --set '
                       f'{key}=...')
    kind = (int, float) if isinstance(default, float) else type(default)
    if key in given and key != 'weights' and not isinstance(given[key], kind):
      raise InputError(f'got {key}={given[key]} with --method={name}; expected a value like '
                       f'{default}')
  return operator, operator.make(**given)


def numbers(name: str, values: Sequence[str]) -> list[float]:
  try:
    return [float(value) for value in values]
  except ValueError as error:
    raise InputError(f'got --{name}={",".join(values)}; expected numbers') from error


def free_folder(path: str | None) -> str:
  """Raises InputError unless --out can be a new folder, or one without a merge."""
  if not path:
    raise InputError('got no --out; expected a folder, or --dry_run')
  taken = [name for name in ('merge.json', *(f'merged{s}' for s in tensors.SUFFIXES))
           if os.path.exists(os.path.join(path, name))]
  if taken or os.path.isfile(path):
    raise InputError(f'got --out={path}, where {taken[0] if taken else "a file"} is already; '
                     'expected a new folder')
  return path


def check_needs(operator: Operator):
  """Raises InputError unless the flags give what the operator needs."""
  name, count = METHOD.value, len(MODELS.value)
  if 'base' in operator.needs and not BASE.value:
    raise InputError(f'got --method={name} without --base; expected the model that all were '
                     'trained from')
  if 'two models' in operator.needs and count != 2:
    raise InputError(f'got --method={name} with {count} models; expected two')
  if 'network' in operator.needs and not EVALUATE.value:
    raise InputError(f'got --method={name} without --evaluate; expected a config file or the '
                     'folder of a run, for its network and its data')


def check_base(stacked: dict, base: dict):
  """Raises InputError unless the base can be the start of these models."""
  weights = {name: (x, stacked[name]) for name, x in base.items()
             if x.ndim > 2 and _merges(name, x)}
  products = [_products(*pair) for pair in weights.values()]
  cross, start, first = np.sum(products, axis=0) if products else np.zeros(3)
  cosine = cross / np.sqrt(max(start * first, 1e-30))
  if sum(x.size for x, _ in weights.values()) >= _ENOUGH and cosine < _UNRELATED:
    raise InputError(f'got --base={BASE.value}, whose weights have a cosine of {cosine:.3f} with '
                     f'those of {MODELS.value[0]}; expected the model that all were trained from')


def combine(operator: Operator, merge: Callable, stacked: dict, base: dict | None,
            on: bench.Bench | None) -> dict[str, Array]:
  """Merges the parameters; the rest is pooled, estimated anew, or taken from the first model."""
  key = jax.random.key(SEED.value)
  start = tree.take(base, 0) if base else None
  part = lambda of: {name: x for name, x in of.items() if _merges(name, stacked[name])}
  if 'network' in operator.needs:
    merged = learnt(merge, tensors.unflatten(stacked), start and tensors.unflatten(start), on, key)
  else:
    merged = jax.jit(merge)(part(stacked), part(start) if base else None, key)
  return {name: merged[name] if name in merged else _pooled(name, stacked) for name in stacked}


def learnt(merge: Callable, stacked: PyTree, start: PyTree | None, on: bench.Bench,
           key: Key) -> dict[str, Array]:
  """Merges by what the network does on held-out rows, where running statistics are estimated, too.

  Raises:
    InputError: there are no such rows.
  """
  if not len(on.held_out):
    raise InputError(f'got --evaluate={EVALUATE.value} without validation rows; expected '
                     'partition.validation above 0')
  rows = minibatches(key, on.held_out, batch=_BATCH, steps=-(-len(on.held_out) // _BATCH))

  def work(stacked, start, examples, rows, key):
    params = merge(on.model, stacked, start, examples, rows, key)
    return calibrate.recalibrate(
        on.model, {**tree.take(stacked, 0), 'params': params}, examples, rows)

  return tensors.flatten(jax.jit(work)(stacked, start, on.examples, rows, key))


def describe(name: str, x: Array, stacked: Array) -> list[str]:
  """Returns a row of the table."""
  if not jnp.issubdtype(x.dtype, jnp.inexact):
    return [name, str(x.shape), 'the first model\'s', '']
  how = METHOD.value if _merges(name, stacked) else statistics_of(METHOD.value)
  return [name, str(x.shape), how, f'{_change(x, stacked):.4f}']


def statistics_of(method: str) -> str:
  return 'estimated anew' if 'network' in OPERATORS[method].needs else 'pooled statistics'


def judge(on: bench.Bench, stacked: dict, merged: dict) -> list[list[str]]:
  """Scores each model and the merged one; the barrier is between neighbours in the list."""
  models = [tensors.unflatten(one) for one in tree.unstack(stacked)]
  shown = lambda score: [f'{value:.4f}' for value in score]
  rows = [[path, *shown(bench.score(on, model))]
          for path, model in zip(MODELS.value, models, strict=True)]
  rows.append([METHOD.value, *shown(bench.score(on, tensors.unflatten(merged)))])
  for i, (a, b) in enumerate(itertools.pairwise(models)):
    rows.append([f'barrier between models {i + 1} and {i + 2}', '',
                 f'{bench.barrier(on, a, b):.4f}'])
  return rows


def write(out: str, merged: dict):
  suffix = '.npz' if MODELS.value[0].endswith('.npz') else '.safetensors'
  tensors.save(os.path.join(out, f'merged{suffix}'), merged)
  with open(os.path.join(out, 'merge.json'), 'w') as file:
    json.dump({'method': METHOD.value, 'models': MODELS.value, 'base': BASE.value,
               'weights': WEIGHTS.value, 'set': SET.value, 'seed': SEED.value}, file, indent=2)
    file.write('\n')


# Compiled, so that no copy of a large tensor is made.
@jax.jit
def _change(x, stacked):
  """Returns the distance from the mean of the models, in lengths of that mean."""
  mean = stacked.astype(jnp.float32).mean(axis=0)
  length = jnp.sqrt(jnp.square(mean).sum())
  gap = jnp.sqrt(jnp.square(x.astype(jnp.float32) - mean).sum())
  return gap / jnp.where(length > 0, length, 1)


@jax.jit
def _products(base, stacked):
  """Returns the inner products of the start and the first model, and of each with itself."""
  start, first = base[0].astype(jnp.float32), stacked[0].astype(jnp.float32)
  return jnp.stack([(start * first).sum(), (start**2).sum(), (first**2).sum()])


def _merges(name: str, x: Array) -> bool:
  """Tells parameters from running statistics and counters."""
  running = name.startswith('batch_stats/') or name.split('.')[-1] in _RUNNING
  return jnp.issubdtype(x.dtype, jnp.inexact) and not running


def _pooled(name: str, stacked: dict) -> Array:
  """Pools a running statistic; anything else is that of the first model."""
  x = stacked[name]
  if not jnp.issubdtype(x.dtype, jnp.inexact):
    return x[0]
  share = jnp.full(len(x), 1 / len(x))
  if not name.endswith('var'):
    return tree.mix(share, x)
  mean = stacked[name.removesuffix('var') + 'mean']
  return statistics.pool(share, {'mean': mean, 'var': x})['var']


def _shown(settings) -> str:
  return ', '.join(key if value is REQUIRED else f'{key}={value}'
                   for key, value in settings.items())


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; a wrong one is an InputError like any other."""
  try:
    return flags.FLAGS(['--dry_run' if argument == '--dry-run' else argument for argument in argv])
  except flags.Error as error:
    raise InputError(str(error)) from error


def entry():
  """Runs `main`; turns bad input into one line and an exit code."""
  try:
    app.run(main, flags_parser=parse)
  except InputError as error:
    raise SystemExit(fail(error, 2)) from None


if __name__ == '__main__':
  entry()
