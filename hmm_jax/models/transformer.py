"""Transformers: the blocks of `vit` and `gpt`.

A network's tokens are a *stream* [B, T, F], which each layer reads, normalized, and adds to.
"""

from collections.abc import Sequence
import math

import flax.linen as nn
from flax.typing import Initializer
import jax
import jax.numpy as jnp

from hmm_jax.models import layers
from hmm_jax.types import Array, Model, Symmetry

_EXPANSION = 4  # units of a block's perceptron per unit of the stream


def dense(x: Array, features: int, *, name: str, init: Initializer = layers.xavier) -> Array:
  """Applies an affine map to each token: [B, T, F] -> [B, T, features]."""
  layer = nn.Dense(features, dtype=x.dtype, kernel_init=init, name=name)
  # A gradient of the kernel with one axis of tokens is one plain product, which is faster.
  return layer(x.reshape(math.prod(x.shape[:-1]), x.shape[-1])).reshape(*x.shape[:-1], features)


def layer_norm(x: Array) -> Array:
  return nn.LayerNorm(epsilon=1e-6, dtype=x.dtype)(x)


def gelu(x: Array) -> Array:
  """Returns the exact GELU; jax.nn.gelu has erfc, which takes longer."""
  return 0.5 * x * (1 + jax.lax.erf(x / math.sqrt(2)))


class Attention(nn.Module):
  """Self-attention of the `kept` positions: [B, T, F] -> [B, T', F].

  Head h has the h-th run of F / heads units.
  """

  heads: int
  causal: bool  # a position attends to itself and to those before it only

  @nn.compact
  def __call__(self, x: Array, kept: slice) -> Array:
    _, length, width = x.shape
    units = width // self.heads
    query, key, value = (
        dense(of, width, name=name).reshape(*of.shape[:2], self.heads, units)
        for name, of in (('query', x[:, kept]), ('key', x), ('value', x)))
    scores = jnp.einsum('bihd,bjhd->bhij', query, key).astype(jnp.float32) / math.sqrt(units)
    if self.causal:
      scores = jnp.where(jnp.tril(jnp.ones((length, length), bool))[kept], scores, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(x.dtype)
    mixed = jnp.einsum('bhij,bjhd->bihd', weights, value)
    return dense(mixed.reshape(*mixed.shape[:2], width), width, name='out')


class Block(nn.Module):
  """Attention and a perceptron, each on the normalized stream: [B, T, F] -> [B, T', F]."""

  heads: int
  causal: bool

  @nn.compact
  def __call__(self, x: Array, kept: slice) -> Array:
    width = x.shape[-1]
    attention = Attention(self.heads, self.causal, name='attention')
    x = x[:, kept] + attention(layer_norm(x), kept)
    hidden = gelu(dense(layer_norm(x), _EXPANSION * width, name='up'))
    return x + dense(hidden, width, name='down')


def blocks(x: Array, count: int, *, heads: int, causal: bool, kept: slice) -> Array:
  """Applies blocks, the last of them at the `kept` positions only: [B, T, F] -> [B, T', F]."""
  for n in range(count):
    x = Block(heads, causal)(x, kept if n == count - 1 else slice(None))
  return layer_norm(x)


class Positions(nn.Module):
  """Adds a learned vector to each position: [B, T, F] -> [B, T, F], T up to `count`."""

  count: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    vectors = self.param('embedding', layers.normal(0.02), (self.count, x.shape[-1]), jnp.float32)
    return x + vectors[None, :x.shape[1]].astype(x.dtype)


def wiring(paths: Sequence[str]) -> dict[str, tuple]:
  """Returns the wiring of blocks; layers that are in none read and write the stream."""
  stream = paths[0]
  wires = dict.fromkeys(paths, (stream, stream)) | {stream: (None, stream)}
  for path in paths:
    owner, _, layer = path.rpartition('/')
    match layer:
      case 'query' | 'value' | 'up':
        wires[path] = stream, path
      case 'key':  # Scores are products of queries and keys.
        wires[path] = stream, f'{owner}/query'
      case 'out':
        wires[path] = f'{owner}/value', stream
      case 'down':
        wires[path] = f'{owner}/up', stream
  return wires


def with_heads(model: Model, heads: int) -> Model:
  """Returns a transformer whose symmetry knows its heads.

  Heads are permuted as a whole: the queries and keys of each with its values. Within a head, the
  units of queries and keys are permuted together, and those of values by themselves.
  """

  def symmetry() -> Symmetry:
    plain = model.symmetry()
    values = [group for group in plain.size if group.endswith('/value')]
    ties = tuple((group.removesuffix('value') + 'query', group) for group in values)
    return plain._replace(runs=plain.runs | {group: heads for tied in ties for group in tied},
                          ties=ties)

  return model._replace(symmetry=symmetry)
