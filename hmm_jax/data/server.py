"""Examples of the server, in addition to those of the clients."""

import jax
import numpy as np

from hmm_jax.data import numbering, values
from hmm_jax.registry import Setting
from hmm_jax.types import Dataset, Examples, InputError, Server

_LUMINANCE = np.array([.299, .587, .114], np.float32)  # of red, green and blue, ITU-R BT.601
_CHUNK = 256  # examples in float32 at a time
_DRAW, _NOISE, _SPLIT = range(3)  # streams of random numbers under one seed


def held_out(dataset: Dataset, size: int, seed: int) -> tuple[Dataset, Examples]:
  """Moves `size` training examples to the server, stratified by class.

  Raises:
    InputError: fewer than 2 examples, or none would be left.
  """
  rows = _draw(dataset.y_train, size, len(dataset.y_train) - 1, seed, 'held_out')
  return dataset.keep(_others(len(dataset.y_train), rows)), _examples(dataset, rows)


def of_domain(dataset: Dataset, domain: int, size: int, seed: int) -> tuple[Dataset, Examples]:
  """Removes a domain from the training set and gives `size` of its examples to the server.

  Raises:
    InputError: no such domain, no other one, fewer than 2 examples or more than it has.
  """
  source = f'domain:{domain}'
  names = () if dataset.domain is None else np.unique(dataset.domain)
  if len(names) < 2 or domain not in names:
    raise InputError(f'got source={source}; expected a domain of a data set with at least two, '
                     f'this one has {", ".join(map(str, names)) or "none"}')
  inside = np.flatnonzero(dataset.domain == domain)
  rows = inside[_draw(dataset.y_train[inside], size, len(inside), seed, source)]
  return dataset.keep(np.flatnonzero(dataset.domain != domain)), _examples(dataset, rows)


def other(dataset: Dataset, source: Dataset, size: int, seed: int) -> Examples:
  """Takes `size` training examples of another data set, converted to the clients' inputs.

  Images are resized bilinearly, with antialiasing; gray becomes color by repetition,
  color gray by its luminance. Between uint8 and floating inputs, the latter are
  0..1; between two floating sets values stay. Labels are the other set's own.

  Raises:
    InputError: inputs that can't be converted, fewer than 2 examples or more than there are.
  """
  for side in (source, dataset):
    if isinstance(side.x_train, dict):
      raise InputError(f'got source={source.name}, where {side.name} has several modalities; '
                       'expected held_out, domain:N or data sets of one modality')
  _check_fits(source, dataset.x_train)
  rows = _draw(source.y_train, size, len(source.y_train), seed, source.name)
  chunks = np.array_split(rows, -(-size // _CHUNK))
  with np.errstate(over='ignore'):  # overflow to infinity is refused below
    x = np.concatenate([_fit(source.x_train[chunk], dataset.x_train) for chunk in chunks])
  if not values.finite(x):
    raise InputError(f'got source={source.name} with inputs that are not finite in {x.dtype}, the '
                     "type of the clients'; expected smaller numbers")
  return Examples(x, _examples(source, rows).y)


def aligned(source: Dataset, dataset: Dataset) -> Dataset:
  """Numbers the classes of another data set as the clients' of the same names.

  Classes of other names get the numbers from the clients' C on, and are none of theirs.
  """
  if source.names == dataset.names or dataset.y_train.ndim > 1:
    return source
  ours, theirs = numbering.names(dataset), numbering.names(source)
  ours += tuple(name for name in theirs if name not in ours)
  place = numbering.number(np.array(theirs), ours)
  return source._replace(y_train=place[source.y_train], y_test=place[source.y_test],
                         classes=len(ours), names=ours)


def noisy_labels(examples: Examples, share: float, classes: int, seed: int) -> Examples:
  """Replaces a share of the labels by another class, all equally likely.

  Raises:
    InputError: the share is of no number of labels.
  """
  values.check_share('noise', share)
  rng = np.random.default_rng([seed, _NOISE])
  rows = rng.permutation(len(examples.y))[:round(share * len(examples.y))]
  y = examples.y.copy()
  # With a single class labels stay.
  y[rows] = (y[rows] + rng.integers(1, max(classes, 2), len(rows))) % classes
  return examples._replace(y=y)


def central(examples: Examples, share: float, seed: int) -> Server:
  """Holds out a share of the examples for evaluation, stratified by class.

  At least one example is held out, and never all.

  Raises:
    InputError: fewer than 2 examples, or the share is of no number of them.
  """
  values.check_share('held_out', share)
  total = len(examples.y)
  if total < 2:
    raise InputError(f'got size={total}; expected at least 2 examples, one to learn from '
                     'and one to evaluate on')
  held = _stratified(examples.y, min(max(round(share * total), 1), total - 1),
                     np.random.default_rng([seed, _SPLIT]))
  return Server(examples, _others(total, held).astype(np.int32), held.astype(np.int32))


def _draw(labels, size, most, seed, source):
  """Draws examples for the server from those with these labels."""
  if not 2 <= size <= most:
    raise InputError(f'got size={size} with source={source}; expected from 2 to '
                     f'{most} examples')
  return _stratified(labels, size, np.random.default_rng([seed, _DRAW]))


def _stratified(labels, size, rng):
  """Draws `size` indices, of each class its share within one; the rounding is random.

  Labels that are no classes, such as targets, are not looked at.
  """
  if labels.ndim > 1:
    labels = np.zeros(len(labels), np.int32)
  classes, totals = np.unique(labels, return_counts=True)
  ends = np.floor(np.cumsum(totals)[:-1] * size / len(labels) + rng.random()).astype(int)
  counts = np.diff(ends, prepend=0, append=size)
  return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:count]
                                 for c, count in zip(classes, counts, strict=True)]))


def _others(total, rows):
  return np.setdiff1d(np.arange(total), rows)


def _examples(dataset, rows):
  chosen = dataset.keep(rows)
  y = chosen.y_train
  if y.ndim == 1:
    y = numbering.checked(y, dataset.classes, dataset.name)
  return Examples(chosen.x_train, y)


def _check_fits(source, like):
  """Checks that inputs have one shape, or are images of one or three channels in both sets."""
  x = source.x_train
  shapes = x.shape[1:], like.shape[1:]
  images = all(len(shape) == 3 and shape[2] in (1, 3) for shape in shapes)
  tokens = any(a.dtype.kind != 'f' and a.dtype != np.uint8 for a in (x, like))
  if tokens or not (images or shapes[0] == shapes[1]):
    raise InputError(
        f'got source={source.name} with {x.dtype} inputs of shape {shapes[0]}; expected '
        f'images, or inputs that fit the {like.dtype} inputs of shape {shapes[1]}')
  if x.dtype != np.uint8 and like.dtype == np.uint8 and not 0 <= x.min() <= x.max() <= 1:
    raise InputError(
        f'got source={source.name} with {x.dtype} inputs of shape {shapes[0]} from '
        f'{x.min():g} to {x.max():g}; expected 0 to 1, to fit the uint8 inputs of shape '
        f'{shapes[1]}')


def _fit(x, like):
  """Converts inputs [n, ...] to the shape and dtype of others."""
  shape = like.shape[1:]
  if x.dtype == np.uint8:
    x = x.astype(np.float32) / 255
  if x.shape[1:] != shape:
    x = jax.image.resize(_with_channels(x, shape[2]), (len(x), *shape), 'bilinear')
  x = np.asarray(x)
  return (np.rint(255 * x) if like.dtype == np.uint8 else x).astype(like.dtype)


def _with_channels(x, channels):
  if x.shape[-1] == channels:
    return x
  return (x @ _LUMINANCE)[..., None] if channels == 1 else np.repeat(x, channels, axis=-1)


DEFAULT_SIZE = 200
SETTINGS = {
    'size': Setting(
        -1, f'number of server examples; -1: {DEFAULT_SIZE} if the method learns on them, else 0',
        at_least=-1),
    'source': Setting('held_out', "source of the server's examples: held_out (from the training "
                      'examples), domain:N (from that domain, which no client holds) or the name '
                      'of another data set'),
    'held_out': Setting(
        0.2, "share of the server's examples held out for evaluation", at_least=0, at_most=1),
    'noise': Setting(0.0, "share of the server's labels replaced by a wrong class",
                     at_least=0, at_most=1),
    'seed': Setting(0, "seed of the draw of the server's examples and wrong labels", at_least=0),
}
