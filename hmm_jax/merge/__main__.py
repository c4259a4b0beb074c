"""Merges saved models: python -m hmm_jax.merge --method=NAME --models=A,B,... --out=DIR

A model is a file (safetensors, npz), an exported folder, or a run; RUN@SEED selects another seed
than the first, and RUN@SEED/initial what it began from. --help lists the flags, --method=list the
methods and their needs. Invalid input gives one line on stderr and exit code 2, and nothing is
written; so does a full disk, with exit code 1.
"""

import signal

# Until `entry`, Ctrl-C ends the process without a traceback; unless it is ignored.
if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, signal.SIG_DFL)

from collections.abc import Mapping, Sequence
import contextlib
import json
import os
import sys
from typing import Any

from absl import app, flags, logging
import numpy as np

from hmm_jax.data import storage
from hmm_jax.experiment import exported, locate
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.merge import lora, models, state_dict
from hmm_jax.merging import OPERATORS
from hmm_jax.merging.task_vectors import check_weights
from hmm_jax.models import files
from hmm_jax.registry import REQUIRED, Operator, find, read_settings
from hmm_jax.report.screen import Screen, fail
from hmm_jax.types import Array, InputError, SaveError

METHOD = flags.DEFINE_string('method', None, 'Name of the merge operator; list shows all.')
MODELS = flags.DEFINE_list(
    'models', [], 'Models to merge: files, exported folders, or runs, RUN@SEED.')
BASE = flags.DEFINE_string(
    'base', None, 'Base model from which all models were trained, for methods that need it; of a '
    'run, RUN@SEED/initial.')
WEIGHTS = flags.DEFINE_list('weights', [], 'One weight per model, for methods that take weights.')
SET = flags.DEFINE_multi_string('set', [], 'A setting of the method, key=value; may be repeated.')
OUT = flags.DEFINE_string(
    'out', None, 'Folder for merged.safetensors (or .npz), merge.json and, of a known network, '
    'model.json, so that `hmm_jax predict` takes it.')
SEED = flags.DEFINE_integer(
    'seed', 0, 'Seed of random draws.', lower_bound=0, upper_bound=2**31 - 1)
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Merge and print, but write nothing.')
EVALUATE = flags.DEFINE_string(
    'evaluate', None, 'Config file or folder of a run that defines network and data, to score all '
    'models and the merged one, and for methods that need data.')
BATCH = flags.DEFINE_integer(
    'batch', 64, 'Examples per minibatch, for methods that learn from data.', lower_bound=1)
LORA_RANK = flags.DEFINE_integer(
    'lora_rank', 0, 'Rank of the merged pairs, for models of LoRA pairs: products are merged; the '
    'number of models times their rank is exact for linear methods.', lower_bound=0)
UNPACK_LIMIT = flags.DEFINE_float(
    'unpack_limit', 0.0, 'GiB that a compressed file may unpack to; 0: a quarter of the memory.',
    lower_bound=0)


def main(argv: Sequence[str]):
  """Runs the command with the parsed flags."""
  if len(argv) > 1:
    raise InputError(f'got argument {argv[1]}; expected only --flags')
  screen = Screen()
  if METHOD.value == 'list':
    screen.table('methods', ['method', 'needs', 'settings'],
                 [[name, ', '.join(operator.needs), _shown(operator.settings)]
                  for name, operator in OPERATORS.items()])
    return
  logging.set_verbosity(logging.WARNING)  # JAX logs every backend that is absent.
  operator, settings = chosen()
  check_needs(operator)
  out = None if DRY_RUN.value else free_folder(OUT.value)
  made = models.merge_files(
      operator, settings, MODELS.value, base=BASE.value, evaluate=EVALUATE.value, seed=SEED.value,
      batch=BATCH.value, lora_rank=LORA_RANK.value, unpack_limit=UNPACK_LIMIT.value)
  screen.table(f'{operator.name} of {len(MODELS.value)} models',
               ['tensor', 'type', 'shape', 'merged by', 'change against the mean'],
               [describe(operator, name, x, made.stacked[name]) for name, x in made.merged.items()])
  if made.pairs:
    say_rank(made, screen)
  if made.on:
    screen.table('on the test examples', ['model', *made.on.model.task.names, 'loss'],
                 models.scores(made, operator.name, MODELS.value))
  if out:
    write(out, made.merged, made.metadata, network(made))
    screen.say(f'wrote {out}')


def chosen() -> tuple[Operator, dict]:
  """Returns the operator of --method and the given settings.

  Raises:
    InputError: an unknown operator, or an invalid or missing setting.
  """
  if not METHOD.value:
    raise InputError(f'got no --method; expected one of {", ".join(OPERATORS)}, or list')
  operator = find('--method', METHOD.value, OPERATORS, Operator)
  given = read_settings(operator, SET.value, '--set')
  if 'weights' in given:
    raise InputError(f'got --set weights={given["weights"]}; expected --weights=...')
  if WEIGHTS.value:
    if 'weights' not in operator.settings:
      raise InputError(f'got --weights with --method={operator.name}; expected no --weights, as '
                       'the method does not take weights')
    given['weights'] = numbers('weights', WEIGHTS.value)
    check_weights(given['weights'], len(MODELS.value))
  for key, setting in operator.settings.items():
    if setting.default is REQUIRED and key not in given:
      raise InputError(f'got --method={operator.name} without {key}; expected --{key}=... or --set '
                       f'{key}=...')
  return operator, given


def numbers(name: str, values: Sequence[str]) -> list[float]:
  try:
    return [float(value) for value in values]
  except ValueError as error:
    raise InputError(f'got --{name}={",".join(values)}; expected numbers') from error


def free_folder(path: str | None) -> str:
  """Returns the absolute path of --out.

  Raises:
    InputError: --out is missing, not writable, or already has a merged model.
  """
  if not path:
    raise InputError('got no --out; expected a folder, or --dry_run')
  path = os.path.expanduser(path)
  exported.check_free(
      path, ('merge.json', exported.JSON, *(f'merged{suffix}' for suffix in files.SUFFIXES)))
  return os.path.abspath(path)


def check_needs(operator: Operator):
  """Raises InputError unless the flags meet the needs of the operator."""
  name, count = operator.name, len(MODELS.value)
  if 'base' in operator.needs and not BASE.value:
    raise InputError(f'got --method={name} without --base; expected --base=PATH of the model that '
                     'all were trained from')
  if 'two models' in operator.needs and count != 2:
    raise InputError(f'got --method={name} with {count} models; expected two')
  if 'network' in operator.needs and not EVALUATE.value:
    raise InputError(f'got --method={name} without --evaluate; expected --evaluate=PATH of a '
                     'config file or the folder of a run, for its network and data')


def describe(operator: Operator, name: str, x: Array, stacked: Array) -> list:
  """Returns the table row of one tensor."""
  if not state_dict.is_merged(stacked):
    return [name, x.dtype, x.shape, 'the first model\'s', '']
  how = operator.name
  if lora.factor(name):  # Factors have no mean: many factors have the same product.
    return [name, x.dtype, x.shape, f'{how} of products', '']
  if not state_dict.is_parameter(name, stacked):
    how = 'recalibrated' if 'network' in operator.needs else 'pooled statistics'
  return [name, x.dtype, x.shape, how, f'{_change(x, stacked):.4f}']


def say_rank(made: models.Merged, screen: Screen):
  """Says what the rank of merged LoRA pairs cuts off, and what becomes of their scale."""
  ranks = sorted({pair.rank for pair in made.pairs})
  screen.say(f'LoRA pairs of rank {", ".join(map(str, ranks))} are now of rank {LORA_RANK.value}, '
             f'which cuts off {made.cut:.2g} of a product at most; alpha / rank stays: multiply '
             'lora_alpha in a configuration by the same factor as the rank')


def network(made: models.Merged) -> Mapping[str, Any] | None:
  """Returns what is known of the network of all models, or of --evaluate; None if nothing is.

  The constants that normalize inputs may differ between models: the first one's are kept (our
  choice).
  """
  common = locate.common_network(MODELS.value)
  return made.on.about if common is None and made.on else common


def write(out: str, merged: dict, metadata: dict[str, str], about: Mapping[str, Any] | None):
  """Writes the merged model, merge.json and, of a known network, model.json; all or none.

  Raises:
    SaveError: the file system refuses.
  """
  suffix = '.npz' if MODELS.value[0].endswith('.npz') else '.safetensors'
  how = {'method': METHOD.value, 'models': MODELS.value, 'base': BASE.value,
         'weights': WEIGHTS.value, 'set': SET.value, 'seed': SEED.value,
         'lora_rank': LORA_RANK.value}
  model = os.path.join(out, f'merged{suffix}')
  known = exported.described(
      about, weights=os.path.basename(model), method=METHOD.value, view='merged') if about else None
  try:
    with storage.saving(out):
      os.makedirs(out, exist_ok=True)
    with storage.replacing(os.path.join(out, 'merge.json')) as aside:
      with open(aside, 'w') as file:
        json.dump(how, file, indent=2)
        file.write('\n')
      files.save(model, merged, metadata)
      if known:
        Workdir(out).write_json(exported.JSON, known)
  except SaveError:
    for path in (model, os.path.join(out, exported.JSON)):
      with contextlib.suppress(OSError):
        os.remove(path)
    raise


def _change(x, stacked):
  """Returns the distance from the mean of the models, relative to the norm of that mean."""
  with np.errstate(over='ignore', invalid='ignore'):  # A norm may overflow float32.
    mean = np.asarray(stacked).mean(axis=0, dtype=np.float32)
    norm, distance = np.linalg.norm(mean), np.linalg.norm(np.asarray(x, np.float32) - mean)
    return distance / (norm or 1)


def _shown(settings) -> str:
  return ', '.join(key if setting.default in (REQUIRED, None) else f'{key}={setting.default}'
                   for key, setting in settings.items())


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; raises InputError if one is invalid."""
  try:
    return flags.FLAGS(['--dry_run' if argument == '--dry-run' else argument for argument in argv])
  except flags.Error as error:
    raise InputError(str(error)) from error


def entry(argv: Sequence[str]):
  """Runs `main`; prints an error as one line, and exits with code 2 if it is the input's."""
  try:
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    app.run(main, argv=list(argv), flags_parser=parse)
  except InputError as error:
    raise SystemExit(fail(error, 2)) from None
  except SaveError as error:
    raise SystemExit(fail(error, 1)) from None
  except KeyboardInterrupt:
    raise SystemExit(fail('interrupted', 130)) from None


if __name__ == '__main__':
  entry(sys.argv)
