"""LoRA pairs: adapters are merged by what they mean, the product of their two factors.

The mean of products is not the product of means, so that factors can't be merged one by one. The
products B A of all models are merged by the operator, which is exact, and the result is factored
by its truncated SVD, the nearest of the rank: nothing is cut off where the merge has no higher one,
as a linear merge of K pairs of rank r has at rank K r.

The scale of a pair, alpha / r, must be the same in all models, and stays: a tensor `alpha` beside
a pair grows with the rank; one in a configuration must be multiplied by hand.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from hmm_jax.types import Array, InputError

# PEFT's lora_A.weight and lora_A.NAME.weight, lora_a, lora.down.weight, kernel_lora_down, ...
_FACTOR = re.compile(
    r'(?i:(?<![a-z0-9])lora(?:_linear_layer)?[._/]?)(A|a|down|B|b|up)(?![a-zA-Z0-9])')
_PARTNER = {'A': 'B', 'a': 'b', 'down': 'up'}
# Adapters of other factors, or of more than two: embeddings, DoRA, LyCORIS.
_FOREIGN = re.compile(
    r'(?i)lora_(embedding_[ab]|magnitude_vector|mid)(?![a-z0-9])|dora_scale|(hada|lokr)_[wt]\d')
_ALPHAS = ('alpha', 'lora_alpha')


class Pair(NamedTuple):
  """The names of a pair's tensors, and whether outputs come first, as in PyTorch."""

  a: str  # [r, in], or [in, r]
  b: str  # [out, r], or [r, out]
  outputs_first: bool
  rank: int
  alpha: str | None  # of a tensor that scales the product


def factor(name: str) -> bool:
  """Returns whether a tensor is one of a pair's factors."""
  return bool(_FACTOR.search(name))


def pairs(shapes: Mapping[str, Sequence[int]]) -> list[Pair]:
  """Returns the pairs among the tensors of a model, {name: shape}.

  Raises:
    InputError: adapters that are no pairs of matrices.
  """
  found = [_pair(match, shapes) for match in map(_FACTOR.search, shapes)
           if match and match[1] in _PARTNER]
  paired = {name for pair in found for name in (pair.a, pair.b)}
  for name in shapes:
    if _FOREIGN.search(name) or (factor(name) and name not in paired):
      raise _unsupported(name, shapes[name])
  return found


def fold(tensors: Mapping[str, Array], pairs: Iterable[Pair]) -> dict[str, Array]:
  """Puts products, in float32, in the place of the B of each pair, and leaves A and alpha out."""
  folded = dict(tensors)
  for pair in pairs:
    a, b = (jnp.asarray(folded.pop(name), jnp.float32) for name in (pair.a, pair.b))
    folded.pop(pair.alpha, None)
    first, second = (b, a) if pair.outputs_first else (a, b)
    folded[pair.b] = jnp.matmul(first, second, precision='highest')
  return folded


def unfold(folded: Mapping[str, Array], pairs: Iterable[Pair], rank: int,
           stacked: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
  """Factors merged products.

  Args:
    folded: what the operator made of `fold`.
    pairs: as `pairs` returns them.
    rank: of the factors; beyond the smaller side of a product they are filled up with zeros.
    stacked: the models, {name: [K, ...]}, for types and alpha.

  Returns:
    {name: tensor} in the order of `stacked`, and the largest share of a product's norm that is cut
    off.
  """
  tensors, cut = dict(folded), 0.0
  for pair in pairs:
    u, s, v = np.linalg.svd(np.asarray(tensors[pair.b], np.float64), full_matrices=False)
    cut = max(cut, np.linalg.norm(s[rank:]) / (np.linalg.norm(s) or 1))
    root = np.sqrt(s[:rank])
    short = max(rank - len(s), 0)
    first = np.pad(u[:, :rank] * root, ((0, 0), (0, short)))
    second = np.pad(root[:, None] * v[:rank], ((0, short), (0, 0)))
    names = (pair.b, pair.a) if pair.outputs_first else (pair.a, pair.b)
    for name, x in zip(names, (first, second), strict=True):
      tensors[name] = x.astype(stacked[name].dtype)
    if pair.alpha:
      tensors[pair.alpha] = np.asarray(stacked[pair.alpha][0]) * (rank / pair.rank)
  return {name: tensors[name] for name in stacked}, float(cut)


def check_scales(stacked: Mapping[str, Array], pairs: Iterable[Pair]):
  """Raises InputError unless each pair has the same scale in all models."""
  for name in (pair.alpha for pair in pairs if pair.alpha):
    values = np.asarray(stacked[name], np.float32)
    if (values != values[:1]).any():
      raise InputError(f'got {name}={", ".join(f"{x:g}" for x in values.ravel())} in the models; '
                       'expected LoRA pairs of one scale: merge the models with adapters folded in')


def _pair(match, shapes) -> Pair:
  """Returns the pair of an A, found by its name."""
  name, before = match.string, match.string[:match.start()]
  partner = name[:match.start(1)] + _PARTNER[match[1]] + name[match.end(1):]
  a, b = shapes[name], shapes.get(partner, ())
  if len(a) != 2 or len(b) != 2:
    raise _unsupported(name, a)
  # Of the axes that could be contracted, the rank is the shorter.
  last, first = (n if n == m else math.inf for n, m in ((a[0], b[1]), (a[1], b[0])))
  if last == first:
    raise _unsupported(name, a)
  alpha = next((before + end for end in _ALPHAS if before + end in shapes), None)
  return Pair(name, partner, last < first, int(min(last, first)), alpha)


def _unsupported(name, shape) -> InputError:
  return InputError(f'got {name} of shape {tuple(shape)}, an adapter that is no pair of matrices '
                    'lora_A and lora_B of low rank; expected models with adapters folded in')
