"""Corrupted clients: noisy labels or inputs in training and validation examples."""

from collections.abc import Callable

import jax
import numpy as np

from hmm_jax.data import values
from hmm_jax.registry import Setting
from hmm_jax.types import Examples, Federation, InputError, PyTree

# A corruption of one client's examples, in place: (examples, indices [n], rng) -> None.
Change = Callable[[Examples, np.ndarray, np.random.Generator], None]

_MOST_NOISE = 1000  # With a hundredth of it, hardly anything is left of an input.
_CLIENTS, _CHANGES = 5, 6  # streams of random numbers; the partition uses 0 to 4 of its seed


def corrupt(federation: Federation, change: Change, *, share: float, seed: int) -> Federation:
  """Corrupts training and validation examples of a share of the clients, never test examples.

  Which clients are corrupted depends on the seed only, and a larger share adds clients. The
  corruption of a client does not depend on which others are corrupted.

  Args:
    federation: on the host, with its own copy of the examples, which is changed in place.
    change: the corruption of a client's examples.
    share: of the clients, from 0 to 1, rounded to a number of clients.
    seed: of the partition.

  Raises:
    InputError: clients share examples, or the share is of no number of clients.
  """
  values.check_share('clients', share)
  total = len(federation.clients.id)
  chosen = np.random.default_rng([seed, _CLIENTS]).permutation(total)[:round(share * total)]
  if not len(chosen):
    return federation
  own = [np.concatenate(parts) for parts in zip(
      federation.clients.valid(), federation.validation.clients.valid(), strict=True)]
  held = np.concatenate(own)
  if len(np.unique(held)) < len(held):
    raise InputError(f'got clients={share} with examples that several clients hold, or '
                     'one holds twice; expected 0, or a partition.kind other than resample')
  for k in chosen:
    change(federation.examples, own[k], np.random.default_rng([seed, _CHANGES, k]))
  return federation._replace(corrupted=np.isin(np.arange(total), chosen))


def symmetric(rate: float, classes: int) -> Change:
  """Replaces a label by another class, all equally likely, with probability `rate`."""
  # With a single class labels stay.
  return _labels(rate, lambda y, rng: (y + rng.integers(1, max(classes, 2), len(y))) % classes)


def pairwise(rate: float, classes: int) -> Change:
  """Replaces a label by the next class, the last by the first, with probability `rate`."""
  return _labels(rate, lambda y, rng: (y + 1) % classes)


def random(rate: float, classes: int) -> Change:
  """Redraws a label uniformly from all classes with probability `rate`; it may stay."""
  return _labels(rate, lambda y, rng: rng.integers(classes, size=len(y)))


def relabeled(labels: np.ndarray) -> Change:
  """Replaces the labels of the training examples, the first D of all, by `labels` [D]."""

  def change(examples, rows, rng):
    del rng
    examples.y[rows] = labels[rows]

  return change


def pixels(rate: float, x_train: PyTree) -> Change:
  """Adds Gaussian noise to inputs.

  Args:
    rate: standard deviation of the noise: for uint8 images on the scale 0..1, to which they
      are clipped; for floating inputs in units of each feature's own deviation (last axis),
      by which standardization divides.
    x_train: the training inputs [D, ...], for these units.

  Raises:
    InputError: inputs are tokens, or noise that they can't hold.
  """
  _check_rate(rate, _MOST_NOISE, 'a deviation')
  units = [_unit(leaf) for leaf in jax.tree.leaves(x_train)]

  def change(examples, rows, rng):
    for x, unit in zip(jax.tree.leaves(examples.x), units, strict=True):
      noisy = x[rows] + rate * unit * rng.standard_normal((len(rows), *x.shape[1:]), np.float32)
      with np.errstate(over='ignore'):  # overflow to infinity is refused below
        x[rows] = np.rint(np.clip(noisy, 0, 255)) if x.dtype == np.uint8 else noisy
      if not values.finite(x[rows]):
        raise InputError(f'got rate={rate} with {x.dtype} inputs, which overflow; expected less '
                         'noise')

  return change


def _labels(rate: float, draw: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Change:
  """Changes labels [n] to draw(labels, rng) with probability `rate`."""
  _check_rate(rate, 1, 'a probability')

  def change(examples, rows, rng):
    y = examples.y[rows]
    examples.y[rows] = np.where(rng.random(len(y)) < rate, draw(y, rng), y)

  return change


def _check_rate(rate, most, what):
  if not 0 <= rate <= most:
    raise InputError(f'got rate={rate}; expected {what} from 0 to {most}')
  values.check_share('rate', rate)


def _unit(x):
  """Returns the scale of unit noise: one for an image array, else one per feature."""
  if x.dtype == np.uint8:
    return np.float32(255)
  if x.dtype.kind != 'f':
    raise InputError(f'got kind=pixels with {x.dtype} inputs of shape {x.shape[1:]}; '
                     'expected uint8 or floating ones')
  return x.std(axis=tuple(range(x.ndim - 1)), dtype=np.float64).astype(np.float32)


SETTINGS = {
    'kind': Setting(
        'none', 'symmetric: another class; pairwise: the next class; random: any class; pixels: '
        'noisy inputs; labels:PATH: the labels y of an .npz file, one per training example'),
    'clients': Setting(0.0, 'share of clients that are corrupted', at_least=0, at_most=1),
    'rate': Setting(
        0.5, 'probability that an example changes; pixels: standard deviation of the noise, on the '
        "scale 0..1 for uint8 images, in units of each feature's for floats", at_least=0,
        at_most=_MOST_NOISE),
}
