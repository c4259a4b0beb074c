"""A model atlas: a buffer of the clients' latest updates, and the models in its span.

An anchor a_k is an update: the parameters that a client came back with, less those that it
was sent. With a unit u for each leaf, the atlas spans the models

  x[u] + sum_k w_ku a_k[u],   w_ku = c_ku s_u / |a_k|

of which the c are searched for: coefficients of anchors that are all as long as their median
s_u. Where lengths are measured a unit each, |a_k| is |a_k[u]|.

A unit is what has a coefficient of its own, as in recombine.py: a tree of whole numbers from
0 in the structure of the parameters.
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
  """A slots; their number, and all shapes, never change."""

  updates: PyTree  # [A, ...], of parameters
  owner: Array  # [A] int32, a client's id or EMPTY
  came: Array  # [A] int32, in which round
  score: Array  # [A] float32, a moving average of its coefficients
  strikes: Array  # [A] int32, rounds in a row with a score below 0


def empty(params: PyTree, slots: int) -> Atlas:
  """Returns an atlas of empty slots for updates of such parameters."""
  zeros = jnp.zeros(slots, jnp.int32)
  return Atlas(tree.zeros(tree.repeat(params, slots)), zeros + EMPTY, zeros,
               jnp.zeros(slots, jnp.float32), zeros)


def add(atlas: Atlas, updates: PyTree, ids: Array, now: Array, *,
        first_to_go: Callable) -> tuple[Atlas, Array]:
  """Puts the updates of m <= A clients into the atlas.

  An update replaces its client's older one, whose score it inherits; else it takes an empty
  slot, else that of another client.

  Args:
    atlas: as it was.
    updates: [m, ...].
    ids: [m], all different.
    now: the round.
    first_to_go: (atlas) -> [A], least for the anchor that makes room: `oldest` or `worst`.

  Returns:
    The atlas and the slots [m] of the updates.
  """
  same = atlas.owner[None] == ids[:, None]
  known, stays = same.any(axis=1), same.any(axis=0)
  rank = jnp.where(atlas.owner == EMPTY, -jnp.inf, first_to_go(atlas))
  free = jnp.argsort(jnp.where(stays, jnp.inf, rank))
  slots = jnp.where(known, same.argmax(axis=1), free[jnp.cumsum(~known) - 1])
  keep = lambda values: values.at[slots].set(jnp.where(known, values[slots], 0))
  return Atlas(
      tree.put(atlas.updates, slots, updates), atlas.owner.at[slots].set(ids),
      atlas.came.at[slots].set(now), keep(atlas.score), keep(atlas.strikes)), slots


def oldest(atlas: Atlas) -> Array:
  """Lets the anchor go that came first."""
  return atlas.came.astype(jnp.float32)


def worst(atlas: Atlas) -> Array:
  """Lets the anchor of the lowest score go."""
  return atlas.score


def judge(atlas: Atlas, coefficients: Array, *, decay: float) -> Atlas:
  """Averages the coefficients [A, U] into the scores, and counts strikes."""
  filled = atlas.owner != EMPTY
  score = decay * atlas.score + (1 - decay) * coefficients.mean(axis=1)
  score = jnp.where(filled, score, 0)
  return atlas._replace(score=score, strikes=jnp.where(score < 0, atlas.strikes + 1, 0))


def drop(atlas: Atlas, strikes: int) -> Atlas:
  """Empties the slot of the lowest score among those with so many strikes, if there is one."""
  out = atlas.strikes >= strikes
  chosen = jnp.argmin(jnp.where(out, atlas.score, jnp.inf))
  gone = out & (jnp.arange(len(out)) == chosen)
  return atlas._replace(
      owner=jnp.where(gone, EMPTY, atlas.owner), score=jnp.where(gone, 0, atlas.score),
      strikes=jnp.where(gone, 0, atlas.strikes))


def whole(model: Model, params: PyTree) -> PyTree:
  """Makes one unit of all parameters."""
  del model
  return jax.tree.map(lambda _: 0, params)


def to_median(atlas: Atlas, unit: PyTree) -> Array:
  """Scales whole anchors to their median length: s / |a_k|, [A, U], for all units the same."""
  return _same(to_median_by_unit(atlas, jax.tree.map(lambda _: 0, unit)), unit)


def to_median_by_unit(atlas: Atlas, unit: PyTree) -> Array:
  """Scales each unit's anchors to their median length: s_u / |a_k[u]|, [A, U].

  The median is over the filled slots whose length is above 0; others get a scale of 0.
  """
  lengths = jnp.sqrt(_squares(atlas.updates, unit))
  usable = (atlas.owner != EMPTY)[:, None] & (lengths > 0)
  median = jnp.nanmedian(jnp.where(usable, lengths, jnp.nan), axis=0, keepdims=True)
  return jnp.where(usable, median / jnp.where(usable, lengths, 1), 0)


def as_they_are(atlas: Atlas, unit: PyTree) -> Array:
  """Leaves the anchors' lengths: a scale of 1 for each filled slot, [A, U]."""
  return _same((atlas.owner != EMPTY)[:, None].astype(jnp.float32), unit)


def any_weights(weights: Array, usable: Array) -> Array:
  """Lets the weights [A, U] be any numbers."""
  del usable
  return weights


def convex(weights: Array, usable: Array) -> Array:
  """Projects each unit's weights, of usable anchors, to the simplex: [A, U]."""
  # Two below the least: no more than 0 in the end, whoever is usable; large numbers overflow.
  low = jnp.min(weights, axis=0, keepdims=True, where=usable, initial=0) - 2
  apart = jnp.where(usable, weights, low)
  return jax.vmap(optax.projections.projection_simplex, 1, 1)(apart)


def boxed(bound: float) -> Callable:
  """Returns the projection to weights from 0 to `bound`."""
  return lambda weights, usable: jnp.where(usable, jnp.clip(weights, 0, bound), 0)


def count(unit: PyTree) -> int:
  """Counts the units."""
  return 1 + max(jax.tree.leaves(unit))


def merge(params: PyTree, weights: Array, unit: PyTree, updates: PyTree) -> PyTree:
  """Returns x[u] + sum_k w_ku a_k[u] for weights [A, U]."""
  return jax.tree.map(lambda u, x, a: x + tree.mix(weights[:, u], a), unit, params, updates)


def _same(scale, unit):
  """Repeats [A, 1] for every unit: [A, U]."""
  return jnp.broadcast_to(scale, (len(scale), count(unit)))


def _squares(updates, unit):
  """Returns the squared lengths of each unit of each anchor: [A, U]."""
  sums = [0.0] * count(unit)
  for u, x in zip(jax.tree.leaves(unit), jax.tree.leaves(updates), strict=True):
    sums[u] += jnp.square(x).sum(axis=range(1, x.ndim))
  return jnp.stack(sums, axis=1)
