"""What a network is built from, as JSON says it: in a run's model.json, and in what is exported.

It has these keys:
  network        the name of a record, or FILE.py:RECORD, with its `settings`
  compute_dtype  float32 or bfloat16
  inputs         one entry per array: its `modality` ('' for inputs of one array), the `shape` of
                 one example, `dtype`, the `mean` and `std` of the last axis that normalize it
                 (null: it is not normalized), and of uint8 the `largest` value in training
  vocabulary     the number of tokens, of token inputs
  task           what the outputs mean: the name of a task
  targets        `mean` and `std` of the targets of a regression, by which outputs are scaled; else
                 null
  columns        of inputs from a table: the name of each column, and the strings that it may have,
                 [] for numbers
  classes, names width of the outputs, and the names of the classes, labels or targets
  dataset        the name of the data set
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from hmm_jax.data import normalize, numbering
from hmm_jax.experiment import config as configs
from hmm_jax.models import NETWORKS, classifier
from hmm_jax.registry import Inputs, section
from hmm_jax.tasks import TASKS
from hmm_jax.types import Array, Dataset, Federation, InputError, Model, PyTree

KEYS = ('network', 'settings', 'compute_dtype', 'inputs', 'vocabulary', 'classes', 'names',
        'dataset')
# Keys that earlier releases had not, and what they were.
NEWER = {'task': 'classification', 'targets': None, 'columns': []}


def describe(config: ConfigDict, data: Dataset, federated: Federation) -> dict[str, Any]:
  """Returns what the network of a config is built from, with all that it needs of the data.

  Raises:
    InputError: inputs of a kind that the network does not take.
  """
  held = np.unique(np.concatenate(federated.clients.valid()))
  return without_normalization(config, data) | {
      'inputs': [entry | _normalization(config, data.name, x, held) for entry, x in zip(
          _entries(data.x_train), by_modality(federated.examples.x).values(), strict=True)],
      'targets': _scale(config, federated.examples.y, held)}


def without_normalization(config: ConfigDict, data: Dataset) -> dict[str, Any]:
  """Does what `describe` does, for inputs that are normalized already."""
  record, x = configs.network(config.model), data.x_train
  kind = _kind(x)
  if kind not in record.takes:
    suitable = [name for name, other in NETWORKS.items() if kind in other.takes]
    types = jax.tree.map(lambda leaf: str(leaf.dtype), x)
    raise InputError(f'got model={config.model} with {types} inputs of shape {shapes(x)}; '
                     f'expected a network for {kind}, such as {" or ".join(suitable)}')
  return {
      'network': config.model,
      'settings': configs.section(config, record).to_dict(),
      'compute_dtype': config.compute_dtype,
      'inputs': _entries(x),
      'vocabulary': _vocabulary(data) if kind == 'tokens' else 0,
      'task': config.task,
      'targets': None,
      'columns': [[name, list(known)] for name, known in data.columns],
      'classes': data.classes,
      'names': list(data.titles or numbering.names(data)),
      'dataset': data.name,
  }


def network(about: Mapping[str, Any]) -> Model:
  """Makes the network for normalized inputs.

  Raises:
    InputError: the file of its record is gone, or its settings are invalid.
  """
  record = configs.network(about['network'])
  shape = {entry['modality']: tuple(entry['shape']) for entry in about['inputs']}
  inputs = Inputs(shape.get('', shape), about['classes'], jnp.dtype(about['compute_dtype']),
                  about['vocabulary'], TASKS[about['task']].positions)
  settings = {key: tuple(value) if isinstance(value, list) else value  # JSON has no tuples.
              for key, value in about['settings'].items()}
  with section(record.name, record.settings):
    return record.build(inputs, ConfigDict(settings))


def model(about: Mapping[str, Any], augment: Callable | None = None,
          loss: Callable | None = None) -> Model:
  """Makes the network for stored inputs, which it normalizes, and augments in training.

  Args:
    about: a blueprint.
    augment: (key, x) -> x; None for no augmentation.
    loss: (outputs, y) -> [B], in place of the task's own.
  """
  normalizers = {entry['modality']: _normalizer(entry) for entry in about['inputs']}

  def prepare(x):
    if '' in normalizers:
      return normalizers[''](x)
    return {name: normalizers[name](leaf) for name, leaf in x.items()}

  net = network(about)._replace(task=TASKS[about['task']].make(about, loss))
  return classifier.preprocessed(net, normalize=prepare, augment=augment)


def shapes(x: PyTree) -> PyTree:
  """Returns the shape of an example, or the shape of each modality."""
  return jax.tree.map(lambda leaf: leaf.shape[1:], x)


def by_modality(x: PyTree) -> dict[str, Array]:
  """Returns {modality: array} in order; a single array is of the modality ''."""
  return {name: x[name] for name in sorted(x)} if isinstance(x, dict) else {'': x}


def _entries(x):
  largest = lambda leaf: {'largest': int(leaf.max(initial=0))} if leaf.dtype == np.uint8 else {}
  return [{'modality': name, 'shape': list(leaf.shape[1:]), 'dtype': str(leaf.dtype),
           'mean': None, 'std': None, **largest(leaf)}
          for name, leaf in by_modality(x).items()]


def _normalization(config, name, x, held):
  if config.normalize == 'none' or normalize.is_tokens(x):
    return {}
  mean, std = normalize.constants(name, x, held)
  return {'mean': mean.tolist(), 'std': std.tolist()}


def _scale(config, y, held):
  """Returns mean and standard deviation of the targets in training; None if there are none."""
  if config.task != 'regression':
    return None
  if config.regression.scale == 'none':
    return {'mean': [0.0] * y.shape[1], 'std': [1.0] * y.shape[1]}
  mean, std = normalize.constants('', y, held)
  return {'mean': mean.tolist(), 'std': std.tolist()}


def _normalizer(entry):
  if entry['mean'] is None:
    return lambda x: x if normalize.is_tokens(x) else x.astype(jnp.float32)
  return normalize.normalizer(*(np.array(entry[name], np.float32) for name in ('mean', 'std')))


def _kind(x):
  if isinstance(x, dict):
    return 'modalities'
  return 'tokens' if normalize.is_tokens(x) else 'arrays'


def _vocabulary(data):
  """Returns the size of the vocabulary: the largest token plus one."""
  splits = [x for x in (data.x_train, data.x_test) if x.size]
  least, most = min(x.min() for x in splits), max(x.max() for x in splits)
  if least < 0:
    raise InputError(f'got dataset={data.name} with tokens from {least} to {most}; expected tokens '
                     'of at least 0')
  return int(most) + 1
