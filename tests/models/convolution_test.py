"""Values and gradients against lax and flax."""

import functools
import re

from absl.testing import absltest, parameterized
import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hmm_jax.models.convolution import convolution, max_pool

_NHWC = ('NHWC', 'HWIO', 'NHWC')

# batch, image, channels, window, features, strides, padding
_SHAPES = {
    'same': (3, (6, 5), 5, (3, 3), 4, (1, 1), 'SAME'),
    'valid': (3, (6, 7), 5, (5, 5), 4, (1, 1), 'VALID'),
    'even_window': (2, (5, 6), 3, (2, 4), 4, (1, 1), 'SAME'),
    'same_lower': (2, (5, 6), 3, (4, 4), 4, (1, 1), 'SAME_LOWER'),
    'explicit': (2, (5, 6), 3, (3, 3), 4, (1, 1), ((0, 3), (2, 1))),
    'wide_padding': (2, (4, 4), 3, (2, 2), 4, (1, 1), ((3, 4), (2, 2))),
    'negative_padding': (2, (6, 6), 3, (3, 3), 4, (1, 1), ((-1, 0), (1, -2))),
    'colour': (3, (7, 7), 3, (3, 3), 20, (1, 1), 'SAME'),
    'grey': (3, (7, 7), 1, (5, 5), 20, (1, 1), 'VALID'),
    'one_pixel': (2, (1, 1), 4, (3, 3), 6, (1, 1), 'SAME'),
    'one_row': (1, (1, 9), 4, (1, 3), 6, (1, 1), 'SAME'),
    'sliced_unevenly': (7, (64, 64), 10, (3, 3), 10, (1, 1), 'SAME'),  # by 3 rows
    'sliced_by_one': (2, (96, 96), 10, (3, 3), 10, (1, 1), 'SAME'),
    'a_row_above_a_slice': (1, (128, 128), 10, (3, 3), 10, (1, 1), 'SAME'),
    'pointwise': (3, (4, 5), 6, (1, 1), 4, (1, 1), 'SAME'),
    'pointwise_strided': (3, (5, 4), 6, (1, 1), 4, (2, 2), 'VALID'),
    'pointwise_padded': (3, (5, 4), 6, (1, 1), 4, (1, 1), ((1, 0), (0, 2))),
    'strided': (3, (8, 7), 5, (3, 3), 4, (2, 2), 'SAME'),
    'strided_explicit': (3, (8, 8), 5, (3, 3), 4, (2, 2), ((1, 1), (1, 1))),
    'strided_one_way': (2, (8, 8), 5, (3, 2), 4, (3, 1), 'VALID'),
    'strided_negative': (2, (8, 8), 5, (3, 3), 4, (2, 2), ((-1, 0), (0, -2))),
    'strided_no_output': (2, (3, 3), 4, (5, 5), 6, (2, 2), 'VALID'),
}


def _inputs(shape, dtype=np.float32):
  batch, image, channels, window, features, strides, padding = shape
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, *image, channels))
  kernel = rng.normal(size=(*window, channels, features))
  return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), strides, padding


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _value_and_pullback(function, x, kernel, strides, padding):
  """Returns the value and both gradients of a random weighting of the output."""
  out, pullback = jax.vjp(lambda x, kernel: function(x, kernel, strides, padding), x, kernel)
  dy = np.random.default_rng(1).normal(size=out.shape)
  return out, *pullback(jnp.asarray(dy, out.dtype))


_lax = functools.partial(lax.conv_general_dilated, dimension_numbers=_NHWC)


def _assert_close(actual, expected, tolerance=1e-5):
  for a, b in zip(actual, expected, strict=True):
    assert a.dtype == b.dtype
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max(initial=0)))


class ConvolutionTest(parameterized.TestCase):

  @parameterized.named_parameters(_SHAPES.items())
  def test_equals_lax(self, shape):
    arguments = _inputs(shape)
    _assert_close(
        _value_and_pullback(convolution, *arguments),
        _value_and_pullback(_lax, *arguments))

  @parameterized.parameters('same', 'colour', 'pointwise_strided', 'strided')
  def test_bfloat16(self, name):
    arguments = _inputs(_SHAPES[name], jnp.bfloat16)
    _assert_close(
        _value_and_pullback(convolution, *arguments),
        _value_and_pullback(_lax, *arguments), tolerance=2**-6)

  @parameterized.parameters('same', 'sliced_unevenly', 'pointwise_strided', 'strided')
  def test_stacked_clients_in_a_scan(self, name):
    x, kernel, strides, padding = _inputs(_SHAPES[name])
    xs, kernels = (jnp.stack([a, 2 * a, a[::-1]]) for a in (x, kernel))

    def clients(function):
      one = lambda x, kernel: _value_and_pullback(function, x, kernel, strides, padding)
      return jax.vmap(one)(xs, kernels)

    step = lambda carry, _: (carry, clients(convolution))
    _, ours = jax.jit(lambda: lax.scan(step, (), None, length=2))()
    _assert_close([a[1] for a in ours], clients(_lax))

  def test_second_derivative_equals_lax(self):
    x, kernel, strides, padding = _inputs(_SHAPES['same'])

    @functools.partial(jax.jit, static_argnums=0)
    def curvature(function):
      loss = lambda kernel: jnp.sum(function(x, kernel, strides, padding)**3)
      return jax.grad(lambda kernel: jnp.sum(jax.grad(loss)(kernel)**2))(kernel)

    _assert_close([curvature(convolution)], [curvature(_lax)])

  @parameterized.parameters(
      {'kernel_dilation': 2}, {'input_dilation': 2, 'padding': 1}, {'feature_group_count': 2},
      {'strides': 2}, {'padding': 'CIRCULAR'}, {})
  def test_is_an_argument_of_flax(self, **options):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 9, 4)), jnp.float32)
    ours = nn.Conv(6, (3, 3), conv_general_dilated=convolution, **options)
    theirs = nn.Conv(6, (3, 3), **options)
    variables = jax.jit(ours.init)(jax.random.key(1), x)
    _assert_close([jax.jit(ours.apply)(variables, x)], [jax.jit(theirs.apply)(variables, x)])

  def test_loops_hold_only_convolutions_that_xla_has_kernels_for(self):
    x, kernel, strides, padding = _inputs((8, (8, 8), 4, (3, 3), 4, (1, 1), 'SAME'))

    def compiled(function):
      loss = lambda x, kernel: jnp.sum(function(x, kernel, strides, padding)**2)
      step = lambda _, pair: jax.grad(loss, (0, 1))(*pair)
      loop = jax.jit(lambda x, kernel: lax.fori_loop(0, 9, step, (x, kernel)))
      return set(re.findall(r'dim_labels=(\S+?)[,\s]', loop.lower(x, kernel).compile().as_text()))

    self.assertEqual(compiled(convolution), {'b01f_01io->b01f'})
    self.assertGreater(len(compiled(_lax)), 1)


class MaxPoolTest(parameterized.TestCase):

  @parameterized.product(
      image=((4, 6), (5, 7), (2, 3), (1, 4), (9, 9)), window=(2, 3), dtype=('float32', 'bfloat16'))
  def test_equals_flax_with_ties(self, image, window, dtype):
    # Few distinct values: most windows hold their maximum more than once.
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, *image, 3)), dtype)
    theirs = lambda x: nn.max_pool(x, (window, window), (window, window))
    _assert_close(_pool_and_pullback(lambda x: max_pool(x, window), x), _pool_and_pullback(theirs, x))

  def test_stacked_clients_in_a_scan(self):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 5, 4, 3)), jnp.float32)
    step = lambda carry, _: (carry, jax.vmap(lambda x: _pool_and_pullback(max_pool, x))(x))
    _, ours = jax.jit(lambda: lax.scan(step, (), None, length=2))()
    theirs = [_pool_and_pullback(lambda x: nn.max_pool(x, (2, 2), (2, 2)), one) for one in x]
    _assert_close([a[1] for a in ours], [jnp.stack(a) for a in zip(*theirs)])


@functools.partial(jax.jit, static_argnums=0)
def _pool_and_pullback(function, x):
  out, pullback = jax.vjp(function, x)
  dy = np.random.default_rng(1).normal(size=out.shape)
  return out, *pullback(jnp.asarray(dy, out.dtype))


if __name__ == '__main__':
  absltest.main()
