"""Merges saved models: python -m hmm_jax.merge --method=NAME --models=A,B,... --out=DIR

A model is a file (safetensors, npz) or the folder of a run, FOLDER@SEED for another seed than its
first. --help lists the flags, --method=list the methods and what each one needs. Bad input is one
line on stderr and exit code 2, and nothing is written.
"""

from collections.abc import Sequence
import itertools
import os

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax import bench, saved, tensors, tree, variants, whole
from hmm_jax.log import Screen, Workdir, fail
from hmm_jax.merging.operators import OPERATORS, REQUIRED, Operator
from hmm_jax.merging.task_vectors import check_weights
from hmm_jax.types import Array, InputError

METHOD = flags.DEFINE_string('method', None, 'Which operator; list shows them all.')
MODELS = flags.DEFINE_list('models', [], 'What is merged: files, or folders of runs.')
BASE = flags.DEFINE_string('base', None, 'What all were trained from, for methods that need it.')
WEIGHTS = flags.DEFINE_list('weights', [], 'One number a model, for methods that take them.')
SET = flags.DEFINE_multi_string('set', [], 'A setting of the method, key=value; may be repeated.')
OUT = flags.DEFINE_string('out', None, 'Folder for merged.safetensors (or .npz) and merge.json.')
SEED = flags.DEFINE_integer(
    'seed', 0, 'Of what is drawn.', lower_bound=0, upper_bound=2**31 - 1)
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Merge and show, but write nothing.')
EVALUATE = flags.DEFINE_string(
    'evaluate', None, 'Config file or folder of a run, for the network and the data: scores all '
    'models and the merged one, and serves methods that need data.')

# Models of one start have weights with an angle in common; fewer of them say nothing.
_UNRELATED, _ENOUGH = 0.1, 1000


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
  operator, settings = chosen()
  merge = operator.make(**settings)
  check_needs(operator)
  out = None if DRY_RUN.value else free_folder(OUT.value)
  on = judged_on(operator)
  stacked = saved.load(MODELS.value)
  base = saved.load_start(BASE.value, MODELS.value[0], stacked) if BASE.value else None
  check_models(stacked, base)
  if on:
    bench.check_like(on, tensors.unflatten(tree.take(stacked, 0)), MODELS.value[0])

  merged = whole.merge(operator, merge, stacked, base, jax.random.key(SEED.value), on=on,
                       shares=whole.shares(settings, len(MODELS.value)))
  check_finite(merged)
  screen.table(f'{METHOD.value} of {len(MODELS.value)} models',
               ['tensor', 'type', 'shape', 'what it got', 'change against the mean'],
               [describe(name, merged[name], stacked[name]) for name in merged])
  if on:
    screen.table('on the test rows', ['model', 'accuracy', 'loss'], judge(on, stacked, merged))
  if out:
    write(out, merged)
    screen.say(f'wrote {out}')


def chosen() -> tuple[Operator, dict]:
  """Returns the operator of --method and the settings that were given.

  Raises:
    InputError: there is none, or a setting does not suit it.
  """
  name = METHOD.value
  if name not in OPERATORS:
    raise InputError(f'got {f"--method={name}" if name else "no --method"}; expected one of '
                     f'{", ".join(OPERATORS)}, or list')
  operator = OPERATORS[name]
  given = variants.settings(SET.value)
  if 'weights' in given:
    raise InputError(f'got --set weights={given["weights"]}; expected --weights=...')
  if WEIGHTS.value:
    given['weights'] = numbers('weights', WEIGHTS.value)
    check_weights(given['weights'], len(MODELS.value))
  known = operator.settings
  for key in given:
    if key not in known:
      raise InputError(f'got the setting {key} with --method={name}; expected '
                       f'{_shown(known) or "none"}')
  for key, default in known.items():
    if default is REQUIRED and key not in given:
      raise InputError(f'got --method={name} without {key}; expected --{key}=... or --set '
                       f'{key}=...')
    if key in given and key != 'weights':
      given[key] = like(default, key, given[key])
  return operator, given


def like(default: int | float | str, key: str, value) -> int | float | str:
  """Returns a setting's value in the type of its default; InputError if it has another."""
  try:
    value = float(value) if isinstance(default, float) else value
  except (ValueError, TypeError, OverflowError):
    value = str(value)
  if type(value) is not type(default):
    raise InputError(f'got {key}={value} with --method={METHOD.value}; expected a value like '
                     f'{default}')
  return value


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
           if os.path.lexists(os.path.join(path, name))]
  if taken or os.path.isfile(path):
    raise InputError(f'got --out={path}, where {taken[0] if taken else "a file"} is already; '
                     'expected a new folder')
  Workdir(path).check_writable('--out')
  return os.path.abspath(path)


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


def judged_on(operator: Operator) -> bench.Bench | None:
  """Makes what --evaluate names; InputError if it lacks what the operator learns from."""
  on = bench.bench(EVALUATE.value) if EVALUATE.value else None
  if on and 'network' in operator.needs and not len(on.held_out):
    raise InputError(f'got --evaluate={EVALUATE.value} without validation rows; expected '
                     'partition.validation above 0')
  return on


def check_models(stacked: dict, base: dict | None):
  """Raises InputError unless there are parameters, and the base can be the start of each model."""
  names = [name for name, x in stacked.items() if whole.is_parameter(name, x)]
  if not names:
    raise InputError(f'got {MODELS.value[0]} without parameters; expected tensors of floats')
  weights = [name for name in names if base and base[name].ndim > 1]
  if sum(base[name].size for name in weights) < _ENOUGH:
    return
  for k, path in enumerate(MODELS.value):
    products = [_products(base[name], stacked[name], k) for name in weights]
    cross, start, own = np.sum(products, axis=0)
    cosine = cross / np.sqrt(max(start * own, 1e-30))
    if start and cosine < _UNRELATED:
      raise InputError(f'got --base={BASE.value}, whose weights have a cosine of {cosine:.3f} with '
                       f'those of {path}; expected the model that all were trained from')


def check_finite(merged: dict):
  """Raises InputError if there is a NaN or an infinity."""
  for name, x in merged.items():
    if jnp.issubdtype(x.dtype, jnp.inexact) and not np.isfinite(np.asarray(x)).all():
      raise InputError(f'got NaN or infinity in {name} of the merged model; expected settings and '
                       'models whose merge is finite')


def describe(name: str, x: Array, stacked: Array) -> list:
  """Returns a row of the table."""
  if not jnp.issubdtype(x.dtype, jnp.inexact):
    return [name, x.dtype, x.shape, 'the first model\'s', '']
  how = METHOD.value if whole.is_parameter(name, stacked) else statistics_of(METHOD.value)
  return [name, x.dtype, x.shape, how, f'{_change(x, stacked):.4f}']


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
  """Writes what was merged, and how; InputError if that can't be."""
  suffix = '.npz' if MODELS.value[0].endswith('.npz') else '.safetensors'
  how = {'method': METHOD.value, 'models': MODELS.value, 'base': BASE.value,
         'weights': WEIGHTS.value, 'set': SET.value, 'seed': SEED.value}
  try:
    tensors.save(os.path.join(out, f'merged{suffix}'), merged)
    Workdir(out).write_json('merge.json', how)
  except OSError as error:
    raise InputError(f'got --out={out}; expected a folder that can be written: '
                     f'{error.strerror}') from error


def _change(x, stacked):
  """Returns the distance from the mean of the models, in lengths of that mean."""
  with np.errstate(over='ignore', invalid='ignore'):  # A length may be beyond float32.
    mean = np.asarray(stacked).mean(axis=0, dtype=np.float32)
    length, gap = np.linalg.norm(mean), np.linalg.norm(np.asarray(x, np.float32) - mean)
    return gap / (length or 1)


def _products(start, stacked, k):
  """Returns the inner products of the start and the k-th model, and of each with itself."""
  flat = lambda x: np.asarray(x, np.float32).ravel()
  start, own = flat(start), flat(np.asarray(stacked)[k])
  return np.array([np.vdot(start, own), np.vdot(start, start), np.vdot(own, own)])


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
