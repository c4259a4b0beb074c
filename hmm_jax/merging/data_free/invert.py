"""Inversion: inputs made up from what a model's normalization layers remember of its data.

From noise, inputs x are moved until the batch's own mean and variance at every BatchNorm are
the model's running ones:

  L_inv(x) = sum_l |mean_l(x) - mean_l| + |var_l(x) - var_l|

with Euclidean norms that are not squared, as in DMM, on randomly shifted and flipped images.
A cross-entropy with labels that were drawn, the total variation and the length of x can be added.

The statistics of a batch are those that training would see: each layer's inputs come from
layers that are normalized by the batch itself, not by the running statistics (our choice; where
L_inv is 0 there is no difference).

References:
  Yin, Molchanov, Alvarez, Li, Mallya, Hoiem, Jha, Kautz. Dreaming to Distill: Data-free
    Knowledge Transfer via DeepInversion. CVPR 2020. arXiv:1912.08795.
  Liu, Zhang, Zhang, Zhu, Wu. DMM. ICASSP 2026. arXiv:2603.05957.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.registry import Setting
from hmm_jax.types import Array, Key, Model, PyTree


class Terms(NamedTuple):
  """The weights of what is minimized."""

  statistics: float = 1.0  # L_inv
  labels: float = 0.0  # mean cross-entropy of predictions with the running statistics
  variation: float = 0.0  # total variation, of images
  norm: float = 0.0  # mean norm of an input


def inversion(model: Model, *, steps: int, lr: float, terms: Terms, augment: Callable) -> Callable:
  """Makes the search for a batch of inputs, by Adam.

  Its rate falls along a cosine (our choice: at a constant one, moved images never settle).

  Args:
    model: on inputs of floats, normalized already.
    steps: of Adam.
    lr: its first rate.
    terms: what is minimized.
    augment: (key, x) -> x, before every step: `shift_and_flip` or `as_they_are`.

  Returns:
    (variables, x [B, ...], labels [B], key) -> (x, losses [steps]), one scan. `variables` hold
    the running statistics to be met; the iterate of the lowest loss comes back, not the last.
  """
  optimizer = optax.adam(optax.cosine_decay_schedule(lr, steps))

  def invert(variables, x, labels, key):
    value = lambda x, key: objective(model, variables, augment(key, x), labels, terms)

    def step(carry, key):
      x, state, best, least = carry
      loss, gradient = jax.value_and_grad(value)(x, key)
      best, least = tree.where(loss < least, (x, loss), (best, least))
      change, state = optimizer.update(gradient, state, x)
      return (optax.apply_updates(x, change), state, best, least), loss

    start = (x, optimizer.init(x), x, jnp.float32(jnp.inf))
    (_, _, best, _), losses = lax.scan(step, start, jax.random.split(key, steps))
    return best, losses

  return invert


def objective(model: Model, variables: PyTree, x: PyTree, labels: Array, terms: Terms) -> Array:
  """Returns the weighted sum of the terms, a scalar; one of weight 0 costs nothing."""
  total = terms.statistics * statistics_loss(model, variables, x)
  if terms.labels:
    logits, _ = model.apply(variables, x)
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    total += terms.labels * rows.mean()
  if terms.variation:
    total += terms.variation * sum(map(total_variation, _images(x)))
  if terms.norm:
    squares = [jnp.square(leaf).reshape(len(leaf), -1).sum(axis=1) for leaf in jax.tree.leaves(x)]
    total += terms.norm * _root(sum(squares)).mean()
  return total


def statistics_loss(model: Model, variables: PyTree, x: PyTree) -> Array:
  """Returns L_inv(x), a scalar: 0 for a batch that has exactly the running statistics."""
  running = {name: value for name, value in variables.items() if name != 'params'}
  gaps = tree.sub(model.statistics(variables, x), running)
  return sum(_root(jnp.square(gap).sum()) for gap in jax.tree.leaves(gaps))


def total_variation(images: Array) -> Array:
  """Returns the sum of the lengths of the differences between neighbors in four directions."""
  below, right = images[:, 1:], images[:, :, 1:]
  gaps = (below - images[:, :-1], right - images[:, :, :-1],
          below[:, :, 1:] - images[:, :-1, :-1], below[:, :, :-1] - images[:, :-1, 1:])
  return sum(_root(jnp.square(gap).sum()) for gap in gaps)


def shift_and_flip(pixels: int | None = None) -> Callable:
  """Returns (key, x) -> x, all images rolled by up to so many pixels, and mirrored or not.

  The batch moves as one, as in DeepInversion. Leaves that are no images stay.

  Args:
    pixels: at most; None: a sixteenth of the side, rounded up, which is 2 of CIFAR's 32.
  """

  def augment(key, x):
    shift_key, flip_key = jax.random.split(key)
    flip = jax.random.bernoulli(flip_key)

    def move(leaf):
      if leaf.ndim != 4:
        return leaf
      most = -(-leaf.shape[1] // 16) if pixels is None else pixels
      shift = jax.random.randint(shift_key, (2,), -most, most + 1)
      moved = jnp.roll(leaf, shift, axis=(1, 2))
      return jnp.where(flip, moved[:, :, ::-1], moved)

    return jax.tree.map(move, x)

  return augment


def as_they_are(key: Key, x: PyTree) -> PyTree:
  """Leaves inputs as they are."""
  del key
  return x


def noise(key: Key, like: PyTree, count: int) -> PyTree:
  """Draws inputs from N(0, 1): `count` of the shapes of `like`'s rows."""
  leaves, structure = jax.tree.flatten(like)
  keys = jax.random.split(key, len(leaves))
  return structure.unflatten([jax.random.normal(k, (count, *leaf.shape[1:]))
                              for k, leaf in zip(keys, leaves, strict=True)])


def _images(x):
  return [leaf for leaf in jax.tree.leaves(x) if leaf.ndim == 4]


def _root(square: Array) -> Array:
  """Returns the square root, of which the gradient at 0 is 0 and not NaN."""
  positive = square > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


SETTINGS = {
    'steps': Setting(2000, 'steps of Adam', at_least=1),
    'lr': Setting(0.1, 'learning rate, which falls along a cosine', above=0),
    'labels': Setting(0.0, 'weight of the cross-entropy with labels that are drawn', at_least=0),
    'variation': Setting(0.0, 'weight of the total variation', at_least=0),
    'norm': Setting(0.0, 'weight of the mean norm of an input', at_least=0),
}
