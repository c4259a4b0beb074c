"""Inversion: inputs synthesized from a model's normalization statistics.

Starting from noise, inputs x are optimized until the batch's mean and variance at every BatchNorm
match the model's running ones:

  L_inv(x) = sum_l |mean_l(x) - mean_l| + |var_l(x) - var_l|

with Euclidean norms that are not squared, as in DMM, on randomly shifted and flipped images.
A cross-entropy with random labels, the total variation and the norm of x can be added.

The statistics of a batch are those in training mode: each layer's inputs come from layers that
are normalized by the batch, not by the running statistics (our choice; if L_inv is 0 there is no
difference).

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
  """Weights of the terms of the objective."""

  statistics: float = 1.0  # L_inv
  labels: float = 0.0  # mean cross-entropy of predictions with the running statistics
  variation: float = 0.0  # total variation, of images
  norm: float = 0.0  # mean norm of an input


def inversion(model: Model, *, steps: int, lr: float, terms: Terms, augment: Callable) -> Callable:
  """Returns the optimization of a batch of inputs, by Adam.

  The learning rate has a cosine decay (our choice: with a constant one, augmented images do not
  converge).

  Args:
    model: on normalized inputs.
    steps: of Adam.
    lr: initial learning rate.
    terms: of the objective.
    augment: (key, x) -> x, before every step: `shift_and_flip` or `as_they_are`.

  Returns:
    (variables, x [B, ...], labels [B], key) -> (x, losses [steps]), one scan. `variables` hold
    the target running statistics; the iterate of the lowest loss is returned, not the last.
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
  """Returns the weighted sum of the terms, a scalar; optional ones of weight 0 are skipped."""
  total = terms.statistics * statistics_loss(model, variables, x)
  if terms.labels:
    logits, _ = model.apply(variables, x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    total += terms.labels * losses.mean()
  if terms.variation:
    total += terms.variation * sum(map(total_variation, _images(x)))
  if terms.norm:
    squares = [jnp.square(leaf).reshape(len(leaf), -1).sum(axis=1) for leaf in jax.tree.leaves(x)]
    total += terms.norm * _root(sum(squares, jnp.float32(0))).mean()
  return total


def statistics_loss(model: Model, variables: PyTree, x: PyTree) -> Array:
  """Returns L_inv(x), a scalar: 0 for a batch that has exactly the running statistics."""
  running = tree.statistics(variables)
  gaps = tree.sub(model.statistics(variables, x), running)
  return sum((_root(jnp.square(gap).sum()) for gap in jax.tree.leaves(gaps)), jnp.float32(0))


def total_variation(images: Array) -> Array:
  """Returns the sum of the norms of the differences between neighbors in four directions."""
  below, right = images[:, 1:], images[:, :, 1:]
  gaps = (below - images[:, :-1], right - images[:, :, :-1],
          below[:, :, 1:] - images[:, :-1, :-1], below[:, :, :-1] - images[:, :-1, 1:])
  return sum((_root(jnp.square(gap).sum()) for gap in gaps), jnp.float32(0))


def shift_and_flip(pixels: int | None = None) -> Callable:
  """Returns (key, x) -> x that rolls images by up to `pixels`, and mirrors them at random.

  All images of a batch are moved alike, as in DeepInversion. Leaves that are no images stay.

  Args:
    pixels: None: a sixteenth of the side, rounded up, which is 2 of CIFAR's 32.
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
  """Returns inputs unchanged."""
  del key
  return x


def noise(key: Key, like: PyTree, count: int) -> PyTree:
  """Draws `count` inputs from N(0, 1), shaped as the examples in `like`."""
  leaves, structure = jax.tree.flatten(like)
  keys = jax.random.split(key, len(leaves))
  return structure.unflatten([jax.random.normal(k, (count, *leaf.shape[1:]))
                              for k, leaf in zip(keys, leaves, strict=True)])


def _images(x):
  return [leaf for leaf in jax.tree.leaves(x) if leaf.ndim == 4]


def _root(square: Array) -> Array:
  """Returns the square root, with gradient 0 at 0 instead of NaN."""
  positive = square > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


SETTINGS = {
    'steps': Setting(2000, 'steps of Adam', at_least=1),
    'lr': Setting(0.1, 'initial learning rate of a cosine decay', above=0),
    'labels': Setting(0.0, 'weight of the cross-entropy with random labels', at_least=0),
    'variation': Setting(0.0, 'weight of the total variation', at_least=0),
    'norm': Setting(0.0, 'weight of the mean norm of an input', at_least=0),
}
