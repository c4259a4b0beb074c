"""Clients whose training and validation rows are bad."""

from collections.abc import Callable

import jax
import numpy as np

from hmm_jax.registry import Setting
from hmm_jax.types import Clients, Examples, Federation, InputError, PyTree

# What befalls rows of a corrupted client, in place: (examples, rows [n], rng) -> None.
Change = Callable[[Examples, np.ndarray, np.random.Generator], None]

_WHO, _WHAT = 5, 6  # streams of random numbers; a partition has those before under its seed


def corrupt(federation: Federation, change: Change, *, share: float, seed: int) -> Federation:
  """Changes training and validation rows of a share of the clients; test rows stay clean.

  Who is corrupted depends on the seed only, and a larger share adds clients. What befalls
  a client does not depend on who else is corrupted.

  Args:
    federation: on the host, with examples of its own, which are changed in place.
    change: what befalls the rows.
    share: of the clients, from 0 to 1, rounded to a number of them.
    seed: of the partition.

  Raises:
    InputError: clients share rows.
  """
  total = len(federation.clients.id)
  who = np.random.default_rng([seed, _WHO]).permutation(total)[:round(share * total)]
  if not len(who):
    return federation
  own = [np.concatenate(parts) for parts in zip(
      _rows(federation.clients), _rows(federation.validation.clients), strict=True)]
  held = np.concatenate(own)
  if len(np.unique(held)) < len(held):
    raise InputError(f'got clients={share} with rows that several clients hold, or one '
                     'holds twice; expected 0, or a partition.kind other than resample')
  for k in who:
    change(federation.examples, own[k], np.random.default_rng([seed, _WHAT, k]))
  return federation._replace(corrupted=np.isin(np.arange(total), who))


def symmetric(rate: float, classes: int) -> Change:
  """Changes a label to another one, all with equal chances, with probability `rate`."""
  # Of a single class there is no other.
  return _labels(rate, lambda y, rng: (y + rng.integers(1, max(classes, 2), len(y))) % classes)


def pairwise(rate: float, classes: int) -> Change:
  """Changes a label to the next one with probability `rate`, the last to the first."""
  return _labels(rate, lambda y, rng: (y + 1) % classes)


def random(rate: float, classes: int) -> Change:
  """Draws a label anew from all classes with probability `rate`; it may stay as it is."""
  return _labels(rate, lambda y, rng: rng.integers(classes, size=len(y)))


def relabeled(labels: np.ndarray) -> Change:
  """Takes the labels [D] of another source for the training rows, the first of all rows."""

  def change(examples, rows, rng):
    del rng
    examples.y[rows] = labels[rows]

  return change


def pixels(rate: float, x_train: PyTree) -> Change:
  """Adds Gaussian noise to inputs.

  Args:
    rate: its standard deviation: of uint8 images on the scale 0..1, which is kept by
      clipping; of floating inputs in units of each feature's own (the last axis), which
      is what standardization divides them by.
    x_train: the training inputs [D, ...], for these units.

  Raises:
    InputError: inputs are tokens.
  """
  units = [_unit(leaf) for leaf in jax.tree.leaves(x_train)]

  def change(examples, rows, rng):
    for x, unit in zip(jax.tree.leaves(examples.x), units, strict=True):
      noisy = x[rows] + rate * unit * rng.standard_normal((len(rows), *x.shape[1:]), np.float32)
      x[rows] = np.rint(np.clip(noisy, 0, 255)) if x.dtype == np.uint8 else noisy

  return change


def _labels(rate: float, draw: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Change:
  """Changes labels [n] to draw(labels, rng) with probability `rate`."""
  if not 0 <= rate <= 1:
    raise InputError(f'got rate={rate}; expected a probability from 0 to 1, which labels '
                     'change with')

  def change(examples, rows, rng):
    y = examples.y[rows]
    examples.y[rows] = np.where(rng.random(len(y)) < rate, draw(y, rng), y)

  return change


def _unit(x):
  """Returns what noise of deviation 1 is multiplied by, of an array or of its last axis."""
  if x.dtype == np.uint8:
    return np.float32(255)
  if x.dtype.kind != 'f':
    raise InputError(f'got kind=pixels with {x.dtype} inputs of shape {x.shape[1:]}; '
                     'expected uint8 or floating ones')
  return x.std(axis=tuple(range(x.ndim - 1)), dtype=np.float64).astype(np.float32)


def _rows(clients: Clients) -> list[np.ndarray]:
  return [index[:size] for index, size in zip(clients.index, clients.size, strict=True)]


SETTINGS = {
    'kind': Setting('none', 'symmetric: another label; pairwise: the next one; random: any; pixels: '
                    'noisy inputs; labels:PATH: the labels y of an .npz file, one for each training '
                    'example as loaded'),
    'clients': Setting(0.0, 'share of the clients', at_least=0, at_most=1),
    'rate': Setting(0.5, 'probability that an example changes; pixels: standard deviation of the '
                    "noise, of uint8 images on the scale 0..1, of floats in units of each feature's",
                    at_least=0),
}
