"""Causal transformers over tokens, such as characters."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmm_jax.models import layers
from hmm_jax.models import transformer as parts
from hmm_jax.models.classifier import check_tokens, classifier
from hmm_jax.registry import Inputs, Network, Setting
from hmm_jax.types import Array, InputError, Model


class Trunk(nn.Module):
  """Tokens [B, T] -> the last position [B, F], or all of them [B, T, F]."""

  vocabulary: int
  width: int
  layers: int
  heads: int
  positions: int
  at_each_position: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array, *, train: bool, mask: Array | None) -> Array:
    x = nn.Embed(self.vocabulary, self.width, dtype=self.dtype,
                 embedding_init=layers.normal(0.02), name='tokens')(x)
    x = parts.Positions(self.positions, name='positions')(x)
    kept = slice(None) if self.at_each_position else slice(-1, None)
    x = parts.blocks(x, self.layers, heads=self.heads, causal=True, kept=kept)
    return x if self.at_each_position else x[:, -1]


def gpt(
    layers: int = 4,
    *,
    width: int = 128,
    heads: int = 4,
    positions: int = 0,
    at_each_position: bool = False,
    vocabulary: int,
    classes: int,
    input_shape: tuple[int, ...],
    dtype: jnp.dtype = jnp.float32,
) -> Model:
  """Returns a causal transformer: an output at a position depends on no later token.

  As GPT-2: learned positions, normalization before each layer. Our choices: the exact GELU and
  the initialization of `vit`, as GPT-2's suits widths near 768; no dropout; and a head of its
  own instead of the tokens' vectors, as methods may keep heads private or replace them, and as
  classes need not be tokens.

  Args:
    layers: number of blocks.
    width: of the stream.
    heads: of each block's attention.
    positions: learned positions, 0 for as many as an example has tokens.
    at_each_position: gives features [B, T, F] and logits [B, T, C], instead of the last position's.
    vocabulary: number of different tokens, which are numbered from 0.
    input_shape: (T,), tokens per example.

  Raises:
    InputError: a width that is no multiple of the heads, fewer positions than tokens, or inputs
      that are not tokens.

  Reference: A. Radford et al. "Language Models are Unsupervised Multitask Learners". OpenAI 2019.
  """
  if width % heads:
    raise InputError(f'got width={width}, heads={heads}; expected a width that is a multiple of '
                     'the heads')
  check_tokens('gpt', input_shape)
  [length] = input_shape
  if 0 < positions < length:
    raise InputError(f'got positions={positions} with examples of {length} tokens; expected 0, or '
                     f'at least {length}')
  trunk = Trunk(vocabulary, width, layers, heads, positions or length, at_each_position,
                dtype)
  model = classifier(trunk, classes=classes, dtype=dtype, wiring=parts.wiring,
                     input_shape=jax.ShapeDtypeStruct((length,), jnp.int32))
  return parts.with_heads(model, heads)


def build_gpt(inputs: Inputs, settings) -> Model:
  return gpt(settings.layers, width=settings.width, heads=settings.heads,
             positions=settings.positions, at_each_position=inputs.positions,
             vocabulary=inputs.vocabulary, classes=inputs.classes, input_shape=inputs.shape,
             dtype=inputs.dtype)


NETWORK = Network(
    'gpt', build_gpt,
    {'layers': Setting(4, 'number of blocks', at_least=1, at_most=1000),
     'width': Setting(128, 'width of the blocks, a multiple of the heads', at_least=1,
                      at_most=10**6),
     'heads': Setting(4, 'heads of attention', at_least=1, at_most=10**6),
     'positions': Setting(0, 'learned positions; 0: as many as an example has tokens', at_least=0,
                          at_most=10**6)},
    takes=('tokens',),
    summary='a causal transformer in the style of GPT-2',
    paper='Radford et al. OpenAI 2019')
