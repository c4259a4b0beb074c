"""Recurrent networks over tokens, such as characters."""

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax.models import layers
from hmm_jax.models.classifier import check_tokens, classifier
from hmm_jax.models.symmetry import chain
from hmm_jax.registry import Inputs, Network, Setting
from hmm_jax.types import Array, InputError, Model


class LSTM(nn.Module):
  """One LSTM layer with initial state zero: [T, B, F] -> [T, B, features]."""

  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    gates, init = 4 * self.features, layers.uniform(self.features)
    kernel, recurrent, bias = (
        self.param(name, init, shape, jnp.float32).astype(x.dtype) for name, shape in (
            ('kernel', (x.shape[-1], gates)), ('recurrent', (self.features, gates)),
            ('bias', (gates,))))

    inputs = x @ kernel + bias[None, None]  # Of all times: one product instead of T.

    def step(state, now):
      cell, hidden = state
      gate = jnp.split(now + hidden @ recurrent, 4, axis=-1)
      input_gate, forget_gate, output_gate = (jax.nn.sigmoid(gate[n]) for n in (0, 1, 3))
      cell = forget_gate * cell + input_gate * jnp.tanh(gate[2])
      hidden = (output_gate * jnp.tanh(cell)).astype(x.dtype)
      return (cell, hidden), hidden

    cell = jnp.zeros((x.shape[1], self.features), jnp.float32)  # in any case, as a sum over time
    _, hidden = lax.scan(step, (cell, cell.astype(x.dtype)), inputs)
    return hidden


class Trunk(nn.Module):
  """Token embedding and LSTM layers: [B, T] -> the last state [B, F], or all [B, T, F]."""

  vocabulary: int
  embedding: int
  hidden: tuple[int, ...]
  at_each_position: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array, *, train: bool, mask: Array | None) -> Array:
    x = nn.Embed(self.vocabulary, self.embedding, dtype=self.dtype,
                 embedding_init=nn.initializers.normal(1))(x.T)
    for features in self.hidden:
      x = LSTM(features)(x)
    return x.swapaxes(0, 1) if self.at_each_position else x[-1]


def lstm(
    embedding: int = 8,
    hidden: tuple[int, ...] = (256, 256),
    *,
    at_each_position: bool = False,
    vocabulary: int,
    classes: int,
    input_shape: tuple[int, ...],
    dtype: jnp.dtype = jnp.float32,
) -> Model:
  """Returns stacked LSTM layers that predict from the last state, or from each.

  Kernels are initialized as in PyTorch. Our choice: one bias per gate instead of two, and no
  larger bias of the forget gate.

  Args:
    embedding: width of a token.
    hidden: width of each layer.
    at_each_position: gives features [B, T, F] and logits [B, T, C], instead of the last position's.
    vocabulary: number of different tokens, which are numbered from 0.
    input_shape: (T,), tokens per example.

  Raises:
    InputError: a width below 1, no layer, or inputs that are not tokens.

  Reference: the character model of B. McMahan et al. "Communication-Efficient Learning of
  Deep Networks from Decentralized Data". AISTATS 2017. arXiv:1602.05629. The task, the
  character that follows, is that of S. Caldas et al. "LEAF: A Benchmark for Federated
  Settings". arXiv:1812.01097.
  """
  if embedding < 1:
    raise InputError(f'got embedding={embedding}; expected a width of at least 1')
  if not hidden or any(features < 1 for features in hidden):
    raise InputError(f'got hidden={tuple(hidden)}; expected widths of at least 1, one per layer')
  check_tokens('lstm', input_shape)
  trunk = Trunk(vocabulary, embedding, tuple(hidden), at_each_position, dtype)
  return classifier(trunk, classes=classes, dtype=dtype, wiring=chain,
                    input_shape=jax.ShapeDtypeStruct(tuple(input_shape), jnp.int32))


def build_lstm(inputs: Inputs, settings) -> Model:
  return lstm(settings.embedding, settings.hidden, at_each_position=inputs.positions,
              vocabulary=inputs.vocabulary, classes=inputs.classes, input_shape=inputs.shape,
              dtype=inputs.dtype)


NETWORK = Network(
    'lstm', build_lstm,
    {'embedding': Setting(8, 'width of an embedded token', at_least=1, at_most=10**6),
     'hidden': Setting((256, 256), 'widths of the layers', at_least=1, at_most=10**6)},
    takes=('tokens',),
    summary='stacked LSTM layers that predict the next character',
    paper='McMahan et al. AISTATS 2017. arXiv:1602.05629')
