"""Slerp: spherical interpolation of two models, tensor by tensor."""

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.registry import Operator, Setting
from hmm_jax.types import InputError, Merge


def slerp(*, t: float = 0.5, parallel: float = 0.9995) -> Merge:
  """Returns the spherical interpolation of two models, tensor by tensor.

  As in the popular tools, each tensor is one vector, and interpolation is linear if the two are
  nearly parallel (or opposite) or one of them is 0.

  Args:
    t: from 0, the first model, to 1, the second.
    parallel: cosine, in magnitude, from which interpolation is linear; at the default, that of
      the popular tools, it is at most 1/8000 inside the arc.

  Raises:
    InputError: t or the cosine is out of range, or the models are not two.

  Reference: Shoemake. Animating Rotation with Quaternion Curves. SIGGRAPH 1985.
  """
  if not 0 <= t <= 1:
    raise InputError(f'got t={t}; expected a number from 0 to 1')
  if not 0 <= parallel <= 1:
    raise InputError(f'got parallel={parallel}; expected a number from 0 to 1')
  shares = jnp.array([1 - t, t])

  def merge(stacked, base, key):
    del base, key
    if (count := tree.count(stacked)) != 2:
      raise InputError(f'got {count} models; expected exactly 2')
    along = lambda x: tree.mix(_arc(tree.gram(x), shares, parallel), x)
    return jax.tree.map(jax.jit(along), stacked)

  return merge


def _arc(gram, shares, parallel):
  """Returns the weights of two tensors at these shares of the arc between them: [2]."""
  norms = jnp.sqrt(gram[0, 0]) * jnp.sqrt(gram[1, 1])
  straight = jnp.abs(gram[0, 1]) >= parallel * norms
  angle = jnp.arccos(gram[0, 1] / jnp.where(straight, jnp.inf, norms))
  return jnp.where(straight, shares, jnp.sin(shares * angle) / jnp.sin(angle))


OPERATOR = Operator(
    'slerp', slerp, ('shared init', 'two models'),
    {'t': Setting(0.5, 'position from the first model, 0, to the second, 1', at_least=0, at_most=1),
     'parallel': Setting(
         0.9995, 'absolute cosine at or above which two tensors are interpolated linearly',
         at_least=0, at_most=1)},
    summary='spherical interpolation of two models, tensor by tensor',
    paper='Shoemake. SIGGRAPH 1985')
