"""A trained model with all that it needs to predict on raw inputs, without the data set."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from hmm_jax import tree
from hmm_jax.data import normalize
from hmm_jax.experiment import blueprint
from hmm_jax.experiment.devices import in_32_bits
from hmm_jax.types import InputError, Model, PyTree

_BATCH = 512  # examples that the network is run on at a time


class Predictor:
  """A model that predicts on inputs as they are in its data set, such as uint8 images.

  model:     the network, as a `Model` that normalizes its inputs.
  variables: its parameters and statistics; of a mixture of M models [M, ...].
  mixture:   [M], the weights of the models' probabilities; None for a single model.
  classes:   the width of the outputs, C; `names` are what classes, labels or targets are called.
  about:     how the model came about, and what its inputs must be.
  forward:   the compiled (variables, x) -> predictions of one model.
  """

  def __init__(self, about: Mapping[str, Any], variables: PyTree,
               mixture: np.ndarray | None = None, *, model: Model | None = None,
               forward: Callable | None = None):
    self.about, self.variables, self.mixture = about, variables, mixture
    self.model = model or blueprint.model(about)
    self.classes, self.names = about['classes'], tuple(about['names'])
    self.forward = forward or predictions(self.model)

  @in_32_bits
  def predict(self, x: PyTree) -> np.ndarray:
    """Returns the task's predictions, float32: probabilities of classes or labels, or targets.

    They are [B, C], or, of next tokens, [B, T, C].

    Args:
      x: [B, ...], or {modality: [B, ...]}; B may be 0.

    Raises:
      InputError: inputs of another shape or type than the network was trained on.
    """
    x = checked(self.about, x)
    count = len(next(iter(jax.tree.leaves(x))))
    parts = [self._predict(tree.take(x, np.arange(first, min(first + _BATCH, count))))
             for first in range(0, count, _BATCH)]
    nothing = np.zeros((0, *self._places, self.classes), np.float32)
    return np.concatenate([nothing, *parts])

  @property
  def _places(self) -> tuple[int, ...]:
    """The shape of an example's outputs before their last axis."""
    return tuple(self.about['inputs'][0]['shape'][:1]) if self.task == 'next_token' else ()

  @property
  def task(self) -> str:
    """What the model predicts: the name of a task."""
    return self.about['task']

  def _predict(self, x):
    if self.mixture is None:
      return np.asarray(self.forward(self.variables, x))
    each = [np.asarray(self.forward(tree.take(self.variables, m), x))
            for m in range(len(self.mixture))]
    return np.einsum('m,m...->...', self.mixture, np.stack(each))


def predictions(model: Model) -> Callable:
  """Returns the compiled (variables, x) -> the task's predictions."""
  return jax.jit(lambda variables, x: model.task.predict(model.apply(variables, x)[0]))


def checked(about: Mapping[str, Any], x: PyTree) -> PyTree:
  """Returns inputs as NumPy arrays of the types that the network was trained on.

  Raises:
    InputError: they are of another shape or type.
  """
  entries = {entry['modality']: entry for entry in about['inputs']}
  if '' in entries:
    return _array('inputs', x, entries[''], about['vocabulary'])
  names = sorted(x) if isinstance(x, Mapping) else ['a single array']
  if names != sorted(entries):
    raise InputError(f'got inputs of {", ".join(map(str, names))}; expected one array for each of '
                     f'{", ".join(entries)}')
  arrays = {name: _array(f'inputs of {name}', x[name], entry, 0) for name, entry in entries.items()}
  if len(lengths := {len(leaf) for leaf in arrays.values()}) > 1:
    raise InputError(f'got inputs of {sorted(lengths)} examples; expected as many of each of '
                     f'{", ".join(entries)}')
  return arrays


def expected(entry: Mapping[str, Any], vocabulary: int = 0) -> str:
  """Says what an array of inputs must be."""
  shape = ', '.join(['B', *map(str, entry['shape'])])
  said = f'{entry["dtype"]} [{shape}]'
  if vocabulary:
    return f'{said}, tokens from 0 to {vocabulary - 1}'
  if len(entry['shape']) == 3:
    said += ', images by height, width and channel'
  return said + (f', of values up to {entry["largest"]}' if 'largest' in entry else '')


def _array(what, x, entry, vocabulary):
  try:
    x = np.asarray(x)
  except ValueError as error:  # Lists of several lengths.
    raise InputError(f'got {what} that make no array; expected {expected(entry)}') from error
  wanted, shape = np.dtype(entry['dtype']), tuple(entry['shape'])
  refusal = lambda why: InputError(
      f'got {what} {x.dtype} {list(x.shape)}; expected {expected(entry, vocabulary)}{why}')
  if x.shape[1:] != shape or not x.ndim:
    raise refusal(_hint(x, shape))
  if normalize.is_tokens(np.zeros(0, wanted)):
    if not np.issubdtype(x.dtype, np.integer):
      raise refusal('')
    if x.size and not 0 <= x.min() <= x.max() < vocabulary:
      raise refusal(f'; they are from {x.min()} to {x.max()}')
  elif wanted == np.uint8:
    if x.dtype != np.uint8:
      raise refusal('')
  elif not np.issubdtype(x.dtype, np.floating):
    raise refusal('')
  elif not np.isfinite(x).all():
    raise refusal('; some are NaN or infinite')
  return x.astype(wanted, copy=False)


def _hint(x, shape):
  """Says what a usual mistake in the axes is."""
  if x.shape == shape:
    return '; one example is x[None]'
  if len(shape) == 3 and x.ndim == 4 and (*x.shape[2:], x.shape[1]) == shape:
    return '; the channels come last'
  return '; a channel is an axis of its own' if (*x.shape[1:], 1) == shape else ''
