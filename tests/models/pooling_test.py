"""Values and gradients against flax."""

import functools

from absl.testing import absltest, parameterized
import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hmm_jax.models.pooling import max_pool


@functools.partial(jax.jit, static_argnums=0)
def _value_and_pullback(pool, x):
  """Returns the value and the gradient of a random weighting of its entries."""
  out, pullback = jax.vjp(pool, x)
  weights = np.random.default_rng(1).normal(size=out.shape)
  return out, *pullback(jnp.asarray(weights, out.dtype))


def _assert_equal(actual, expected):
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_array_equal(a, b, strict=True)


class MaxPoolTest(parameterized.TestCase):

  @parameterized.product(
      image=((4, 6), (5, 7), (2, 3), (1, 4), (9, 9)), window=(2, 3), dtype=('float32', 'bfloat16'))
  def test_equals_flax_with_ties(self, image, window, dtype):
    # Few distinct values: most windows hold their maximum more than once.
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, *image, 3)), dtype)
    ours = functools.partial(max_pool, window=window)
    theirs = functools.partial(
        nn.max_pool, window_shape=(window, window), strides=(window, window))
    _assert_equal(_value_and_pullback(ours, x), _value_and_pullback(theirs, x))

  def test_stacked_clients_in_a_scan(self):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 5, 4, 3)), np.float32)
    theirs = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
    clients = lambda pool: jax.vmap(lambda x: _value_and_pullback(pool, x))(x)
    _, steps = jax.jit(
        lambda: lax.scan(lambda carry, _: (carry, clients(max_pool)), (), length=2))()
    _assert_equal([leaf[1] for leaf in steps], clients(theirs))


if __name__ == '__main__':
  absltest.main()
