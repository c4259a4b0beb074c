"""A transformer in NumPy, one example and one head at a time, as in the textbooks."""

import math

import numpy as np


def affine(layer, x):
  return x @ layer['kernel'] + layer['bias']


def normalized(layer, x):
  """Normalizes each row."""
  centered = x - x.mean(axis=-1, keepdims=True)
  deviation = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6)
  return centered / deviation * layer['scale'] + layer['bias']


def gelu(x):
  return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def attend(layer, x, *, heads, causal):
  """Returns what each row takes over from others: [T, F] -> [T, F]."""
  units = x.shape[1] // heads
  mixed = np.zeros_like(x)
  for head in range(heads):
    own = slice(head * units, (head + 1) * units)
    query, key, value = (affine(layer[name], x)[:, own] for name in ('query', 'key', 'value'))
    for t in range(len(x)):
      seen = t + 1 if causal else len(x)
      weights = np.exp(key[:seen] @ query[t] / math.sqrt(units))
      mixed[t, own] = weights @ value[:seen] / weights.sum()
  return affine(layer['out'], mixed)


def stream(trunk, tokens, *, heads, causal):
  """Returns the normalized stream behind all blocks: [T, F] -> [T, F]."""
  x = tokens + trunk['positions']['embedding'][:len(tokens)]
  for n in range(sum(name.startswith('Block') for name in trunk)):
    block = trunk[f'Block_{n}']
    x = x + attend(block['attention'], normalized(block['LayerNorm_0'], x), heads=heads,
                   causal=causal)
    x = x + affine(block['down'], gelu(affine(block['up'], normalized(block['LayerNorm_1'], x))))
  return normalized(trunk['LayerNorm_0'], x)
