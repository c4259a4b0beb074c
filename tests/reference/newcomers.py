"""Networks as a newcomer writes them, in linen and in nnx, with nothing of this library."""

from flax import nnx
import flax.linen as nn
import jax
import jax.numpy as jnp


class Mlp(nn.Module):
  """A perceptron with BatchNorm and dropout."""

  num_classes: int
  width: int = 16
  rate: float = 0.2

  @nn.compact
  def __call__(self, x, train=False):
    x = x.reshape(x.shape[0], -1)
    for _ in range(2):
      x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(self.width)(x)))
      x = nn.Dropout(self.rate, deterministic=not train)(x)
    return nn.Dense(self.num_classes)(x)


class NnxMlp(nnx.Module):

  def __init__(self, din: int, dout: int, width: int = 16, rate: float = 0.2, *, rngs: nnx.Rngs):
    self.layers = nnx.List([nnx.Linear(n, width, rngs=rngs) for n in (din, width)])
    self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs) for _ in range(2)])
    self.dropout = nnx.Dropout(rate, rngs=rngs)
    self.out = nnx.Linear(width, dout, rngs=rngs)

  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    for layer, norm in zip(self.layers, self.norms, strict=True):
      x = self.dropout(nnx.relu(norm(layer(x))))
    return self.out(x)


class Cnn(nn.Module):
  """Convolutions with a residual sum and pooling; its outputs are log-probabilities."""

  classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
    x = x + nn.Conv(6, (3, 3))(nn.relu(nn.GroupNorm(1)(x)))
    x = nn.gelu(nn.Conv(8, (3, 3), strides=2, padding='VALID')(x))
    x = nn.gelu(nn.Dense(7)(x.reshape(x.shape[0], -1)))
    return nn.log_softmax(nn.Dense(self.classes)(x))


class Encoder(nn.Module):
  dim: int
  heads: int

  @nn.compact
  def __call__(self, x, deterministic):
    y = nn.LayerNorm()(x)
    attention = nn.MultiHeadDotProductAttention(self.heads, dropout_rate=0.1)
    x = x + attention(y, deterministic=deterministic)
    y = nn.gelu(nn.Dense(2 * self.dim)(nn.LayerNorm()(x)))
    return x + nn.Dropout(0.1)(nn.Dense(self.dim)(y), deterministic=deterministic)


class Vit(nn.Module):
  """A vision transformer in plain linen."""

  num_classes: int
  patch: int = 4
  dim: int = 16
  depth: int = 2
  heads: int = 2

  @nn.compact
  def __call__(self, x, deterministic=True):
    x = nn.Conv(self.dim, (self.patch, self.patch), (self.patch, self.patch), name='patches')(x)
    x = x.reshape(x.shape[0], -1, self.dim)
    token = self.param('token', nn.initializers.zeros, (1, 1, self.dim))
    x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
    x = x + self.param('positions', nn.initializers.normal(0.02), (1, x.shape[1], self.dim))
    for _ in range(self.depth):
      x = Encoder(self.dim, self.heads)(x, deterministic)
    return nn.Dense(self.num_classes)(nn.LayerNorm()(x)[:, 0])


class NnxEncoder(nnx.Module):

  def __init__(self, dim, heads, rngs):
    self.before, self.between = (nnx.LayerNorm(dim, rngs=rngs) for _ in range(2))
    self.attention = nnx.MultiHeadAttention(heads, dim, decode=False, rngs=rngs)
    self.up, self.down = (nnx.Linear(m, n, rngs=rngs) for m, n in ((dim, 2 * dim), (2 * dim, dim)))
    self.dropout = nnx.Dropout(0.1, rngs=rngs)

  def __call__(self, x):
    x = x + self.attention(self.before(x))
    return x + self.dropout(self.down(nnx.gelu(self.up(self.between(x)))))


class NnxVit(nnx.Module):
  """A vision transformer in nnx."""

  def __init__(self, num_classes: int, in_channels: int, image_size: int, patch: int = 4,
               dim: int = 16, depth: int = 2, heads: int = 2, *, rngs: nnx.Rngs):
    self.patches = nnx.Conv(in_channels, dim, (patch, patch), (patch, patch), rngs=rngs)
    count = (image_size // patch)**2
    self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, count, dim)))
    self.blocks = nnx.List([NnxEncoder(dim, heads, rngs) for _ in range(depth)])
    self.norm = nnx.LayerNorm(dim, rngs=rngs)
    self.out = nnx.Linear(dim, num_classes, rngs=rngs)

  def __call__(self, x):
    x = self.patches(x)
    x = x.reshape(x.shape[0], -1, x.shape[-1]) + self.positions
    for block in self.blocks:
      x = block(x)
    return self.out(self.norm(x).mean(axis=1))


class Tokens(nn.Module):
  """Outputs at each position of a sequence."""

  outputs: int
  vocab_size: int
  max_len: int = 99

  @nn.compact
  def __call__(self, x, mask=None):
    del mask
    x = nn.Embed(self.vocab_size, 8)(x) + nn.Embed(self.max_len, 8)(jnp.arange(x.shape[1]))[None]
    x = nn.MultiHeadDotProductAttention(2)(x, mask=nn.make_causal_mask(x[..., 0]))
    return nn.Dense(self.outputs)(x)


def chain(outputs, depth=2):
  """Returns a chain of layers."""
  layers = [layer for _ in range(depth) for layer in (nn.Dense(5), nn.tanh)]
  return nn.Sequential([lambda x: x.reshape(x.shape[0], -1), *layers, nn.Dense(outputs)])


made = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)])


# What can't be used, and why.


class Needy(nn.Module):
  depth: int

  def __call__(self, x):
    return x


class Two(nn.Module):

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x), x


class TwoInputs(nn.Module):

  @nn.compact
  def __call__(self, x, lengths):
    return nn.Dense(3)(x)


class Cached(nn.Module):

  @nn.compact
  def __call__(self, x):
    self.variable('cache', 'count', jnp.zeros, ())
    return nn.Dense(3)(x)


class Failing(nn.Module):

  @nn.compact
  def __call__(self, x):
    raise ValueError('no such luck\nin two lines')


def nothing(outputs):
  return [outputs]


def unseeded(dout):
  return nnx.Linear(4, dout, rngs=nnx.Rngs(0))


value = 3
