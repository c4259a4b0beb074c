"""Model atlas: a buffer of the clients' latest updates, and the models in their span.

An anchor a_k is an update: the parameters that a client returned minus those that it was sent.
With a unit u for each leaf, the atlas spans the models

  x[u] + sum_k w_ku a_k[u],   w_ku = c_ku s_u / |a_k|

in which the c are searched for: coefficients of anchors that are scaled to their median norm
s_u. If norms are per unit, |a_k| is |a_k[u]|.

A unit is a set of leaves that share a coefficient, as in recombine.py: `unit` is a tree of
integers from 0 in the structure of the parameters.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.types import Array, Model, PyTree

EMPTY = -1


class Atlas(NamedTuple):
  """A buffer of A slots; all shapes are fixed."""

  updates: PyTree  # [A, ...], of parameters
  owner: Array  # [A] int32, a client's id or EMPTY
  came: Array  # [A] int32, round of the update
  score: Array  # [A] float32, a moving average of its coefficients
  strikes: Array  # [A] int32, rounds in a row with a score below 0


def empty(params: PyTree, slots: int) -> Atlas:
  """Returns an atlas of empty slots for updates of parameters like `params`."""
  zeros = jnp.zeros(slots, jnp.int32)
  return Atlas(tree.zeros(tree.repeat(params, slots)), zeros + EMPTY, zeros,
               jnp.zeros(slots, jnp.float32), zeros)


def add(atlas: Atlas, updates: PyTree, ids: Array, now: Array, *,
        eviction: Callable) -> tuple[Atlas, Array]:
  """Adds the updates of m <= A clients to the atlas.

  An update replaces its client's older one, whose score it inherits; otherwise it takes an empty
  slot, or else that of another client.

  Args:
    atlas: the atlas before.
    updates: [m, ...].
    ids: [m], all different.
    now: the round.
    eviction: (atlas) -> [A], lowest for the anchor to be evicted: `oldest` or `worst`.

  Returns:
    The atlas and the slots [m] of the updates.
  """
  same = atlas.owner[None] == ids[:, None]
  known, stays = same.any(axis=1), same.any(axis=0)
  rank = jnp.where(atlas.owner == EMPTY, -jnp.inf, eviction(atlas))
  free = jnp.argsort(jnp.where(stays, jnp.inf, rank))
  slots = jnp.where(known, same.argmax(axis=1), free[jnp.cumsum(~known) - 1])
  keep = lambda values: values.at[slots].set(jnp.where(known, values[slots], 0))
  return Atlas(
      tree.put(atlas.updates, slots, updates), jnp.asarray(atlas.owner).at[slots].set(ids),
      jnp.asarray(atlas.came).at[slots].set(now), keep(atlas.score), keep(atlas.strikes)), slots


def oldest(atlas: Atlas) -> Array:
  """Returns the rounds of the anchors: the oldest is evicted first."""
  return atlas.came.astype(jnp.float32)


def worst(atlas: Atlas) -> Array:
  """Returns the scores of the anchors: the lowest is evicted first."""
  return atlas.score


def update_scores(atlas: Atlas, coefficients: Array, *, decay: float) -> Atlas:
  """Updates the scores, moving averages of the coefficients [A, U], and the strikes."""
  filled = atlas.owner != EMPTY
  score = decay * atlas.score + (1 - decay) * coefficients.mean(axis=1)
  score = jnp.where(filled, score, 0)
  return atlas._replace(score=score, strikes=jnp.where(score < 0, atlas.strikes + 1, 0))


def drop(atlas: Atlas, strikes: int) -> Atlas:
  """Empties the slot of the lowest score among those with at least `strikes`, if any."""
  out = atlas.strikes >= strikes
  chosen = jnp.argmin(jnp.where(out, atlas.score, jnp.inf))
  gone = out & (jnp.arange(len(out)) == chosen)
  return atlas._replace(
      owner=jnp.where(gone, EMPTY, atlas.owner), score=jnp.where(gone, 0, atlas.score),
      strikes=jnp.where(gone, 0, atlas.strikes))


def whole(model: Model, params: PyTree) -> PyTree:
  """Returns one unit of all parameters."""
  del model
  return jax.tree.map(lambda _: 0, params)


def to_median(atlas: Atlas, unit: PyTree) -> Array:
  """Returns scales of whole anchors to their median norm: s / |a_k|, [A, U], equal in all U."""
  return _same(to_median_by_unit(atlas, jax.tree.map(lambda _: 0, unit)), unit)


def to_median_by_unit(atlas: Atlas, unit: PyTree) -> Array:
  """Returns scales of each unit's anchors to their median norm: s_u / |a_k[u]|, [A, U].

  The median is over the filled slots of norm above 0; others get a scale of 0.
  """
  norms = jnp.sqrt(_squares(atlas.updates, unit))
  usable = (atlas.owner != EMPTY)[:, None] & (norms > 0)
  median = jnp.nanmedian(jnp.where(usable, norms, jnp.nan), axis=0, keepdims=True)
  return jnp.where(usable, median / jnp.where(usable, norms, 1), 0)


def as_they_are(atlas: Atlas, unit: PyTree) -> Array:
  """Returns a scale of 1 for each filled slot, which keeps the anchors' norms: [A, U]."""
  return _same((atlas.owner != EMPTY)[:, None].astype(jnp.float32), unit)


def any_weights(weights: Array, usable: Array) -> Array:
  """Returns the weights [A, U] without a constraint."""
  del usable
  return weights


def convex(weights: Array, usable: Array) -> Array:
  """Projects the weights of usable anchors onto the simplex, for each unit: [A, U]."""
  # Two below the minimum, unusable anchors are projected to 0; larger offsets could overflow.
  low = jnp.min(weights, axis=0, keepdims=True, where=usable, initial=0) - 2
  padded = jnp.where(usable, weights, low)
  return jax.vmap(optax.projections.projection_simplex, 1, 1)(padded)


def boxed(bound: float) -> Callable:
  """Returns the projection onto weights from 0 to `bound`."""
  return lambda weights, usable: jnp.where(usable, jnp.clip(weights, 0, bound), 0)


def count(unit: PyTree) -> int:
  """Returns the number of units."""
  return 1 + max(jax.tree.leaves(unit))


def merge(params: PyTree, weights: Array, unit: PyTree, updates: PyTree) -> PyTree:
  """Returns x[u] + sum_k w_ku a_k[u] for weights [A, U]."""
  return jax.tree.map(lambda u, x, a: x + tree.mix(weights[:, u], a), unit, params, updates)


def _same(scale, unit):
  """Repeats [A, 1] for every unit: [A, U]."""
  return jnp.broadcast_to(scale, (len(scale), count(unit)))


def _squares(updates, unit):
  """Returns the squared norms of each unit of each anchor: [A, U]."""
  sums = [0.0] * count(unit)
  for u, x in zip(jax.tree.leaves(unit), jax.tree.leaves(updates), strict=True):
    sums[u] += jnp.square(x).sum(axis=range(1, x.ndim))
  return jnp.stack(sums, axis=1)
