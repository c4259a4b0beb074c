"""Saved models as one stack: files of tensors, and the runs of this library."""

from collections.abc import Iterator, Sequence
import contextlib
import os

import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax import build, tensors
from hmm_jax.bench import read_config
from hmm_jax.checkpoint import Checkpoints
from hmm_jax.log import Workdir
from hmm_jax.run import Progress
from hmm_jax.trainer import Trainer
from hmm_jax.types import Array, InputError, PyTree

VIEWS = ('global', 'merged')  # Of a run's models, those that are one for all.


def load(paths: Sequence[str], *, like: tuple[str, dict] | None = None) -> dict[str, Array]:
  """Loads models as one stack, {name: [K, ...]}, a tensor at a time.

  Args:
    paths: of files, or of folders of runs, FOLDER@SEED for another seed than the first.
    like: the path and the stack of models that these must be like; None: like the first.

  Raises:
    InputError: they differ in names or shapes, or hold what is not a number.
  """
  if not paths:
    raise InputError('got no --models; expected files of tensors, or folders of runs')
  with contextlib.ExitStack() as files:
    opened = [files.enter_context(source(path)) for path in paths]
    other, shapes = paths[0], opened[0].shapes
    if like:
      other, shapes = like[0], {name: x.shape[1:] for name, x in like[1].items()}
    for path, file in zip(paths, opened, strict=True):
      check_same(path, file.shapes, other, shapes)
    return {name: stack(name, paths, opened) for name in shapes}


@contextlib.contextmanager
def source(path: str) -> Iterator[tensors.Tensors]:
  """Opens a file, or a run's model as if it were one."""
  folder, _, seed = path.partition('@')
  if os.path.isdir(folder):
    named = tensors.flatten(variables_of_run(folder, seed))
    yield tensors.Tensors({name: x.shape for name, x in named.items()}, named.__getitem__)
  else:
    with tensors.opened(path) as file:
      yield file


def check_same(path: str, shapes: dict, other: str, wanted: dict):
  """Raises InputError with the first name or shape in which two models differ."""
  for name in sorted(shapes.keys() ^ wanted.keys()):
    has, lacks = (path, other) if name in shapes else (other, path)
    raise InputError(f'got {lacks} without the tensor {name} of {has}; expected models of one '
                     'network')
  for name, shape in wanted.items():
    if shapes[name] != shape:
      raise InputError(f'got {path} with {name} of shape {shapes[name]}; expected {shape}, as in '
                       f'{other}')


def stack(name: str, paths: Sequence[str], opened: Sequence[tensors.Tensors]) -> Array:
  """Reads one tensor of every model; float64 becomes float32, integers stay on the host.

  Raises:
    InputError: one holds NaN or infinity, or they are of different kinds.
  """
  parts = [np.asarray(file.read(name)) for file in opened]
  inexact = jnp.issubdtype(parts[0].dtype, jnp.inexact)
  for path, part in zip(paths, parts, strict=True):
    if part.dtype != parts[0].dtype:
      raise InputError(f'got {path} with {name} in {part.dtype}; expected {parts[0].dtype}, as in '
                       f'{paths[0]}')
    if inexact and not np.isfinite(part).all():
      raise InputError(f'got {path} with NaN or infinity in {name}; expected finite numbers')
  stacked = np.stack(parts)
  if not inexact:
    return stacked
  return jnp.asarray(stacked.astype(np.float32) if stacked.dtype == np.float64 else stacked)


def variables_of_run(folder: str, seed: str) -> PyTree:
  """Loads the one model that a run has for all, from its newest checkpoint.

  Args:
    folder: of the run.
    seed: a training seed; '' for the run's first.

  Raises:
    InputError: no checkpoint, no such seed, or only models of the clients' own.
  """
  config = read_config(folder)
  data = build.dataset(config)
  experiment = build.experiment(config, data, build.federation(config, data))
  seeds = [str(s) for s in experiment.seeds]
  if seed and seed not in seeds:
    raise InputError(f'got {folder}@{seed}; expected one of its seeds {", ".join(seeds)}')
  checkpoints = Checkpoints(Workdir(folder).file('checkpoints'), experiment.keep)
  newest = checkpoints.latest()
  if newest is None:
    raise InputError(f'got {folder} without a checkpoint; expected a run that has saved one')
  trainer = Trainer(experiment)
  like = Progress(trainer.shapes, trainer.shapes if experiment.keep_best else ())
  states = trainer.place(checkpoints.restore(newest, like).states)
  views = trainer.views(states, seeds.index(seed) if seed else 0)
  for name in VIEWS:
    if name in views:
      return jax.tree.map(np.asarray, views[name])
  raise InputError(f'got {folder}, whose algorithm={config.algorithm} has no model for all; '
                   f'expected a run with a view among {", ".join(VIEWS)}')
