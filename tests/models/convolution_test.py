"""Values and gradients against lax and flax."""

import functools
import re

from absl.testing import absltest, parameterized
import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from hmm_jax.models.convolution import convolution

# batch, image, channels, window, features, strides, padding
_SHAPES = {
    'same': (3, (6, 5), 9, (3, 3), 4, (1, 1), 'SAME'),
    'valid': (3, (6, 7), 9, (5, 5), 4, (1, 1), 'VALID'),
    'even_window': (2, (5, 6), 9, (2, 4), 4, (1, 1), 'SAME'),
    'same_lower': (2, (5, 6), 9, (4, 4), 4, (1, 1), 'SAME_LOWER'),
    'explicit': (2, (5, 6), 9, (3, 3), 4, (1, 1), ((0, 3), (2, 1))),
    'wide_padding': (2, (4, 4), 9, (2, 2), 4, (1, 1), ((3, 4), (2, 2))),
    'negative_padding': (2, (6, 6), 9, (3, 3), 4, (1, 1), ((-1, 0), (1, -2))),
    'color': (3, (7, 7), 3, (3, 3), 20, (1, 1), 'SAME'),
    'gray': (3, (7, 7), 1, (5, 5), 20, (1, 1), 'VALID'),
    'few_channels': (3, (8, 9), 3, (5, 5), 6, (1, 1), 'VALID'),  # by blocks of 4, one cut
    'narrow_window': (3, (9, 10), 6, (3, 3), 8, (1, 1), 'SAME'),  # by blocks of 2
    'narrower_than_a_block': (2, (5, 5), 1, (5, 4), 8, (1, 1), 'VALID'),
    'no_output': (2, (4, 5), 3, (5, 5), 6, (1, 1), ((0, 0), (0, 0))),
    'few_pixels': (3, (3, 4), 13, (3, 3), 4, (1, 1), 'SAME'),
    'smaller_than_the_window': (3, (2, 2), 3, (3, 3), 20, (1, 1), 'SAME'),
    'tiles': (8, (8, 8), 32, (3, 3), 33, (1, 1), 'SAME'),
    'tiles_of_odd_sides': (10, (9, 10), 33, (3, 3), 32, (1, 1), 'VALID'),
    'tiles_padded': (6, (10, 9), 32, (3, 3), 32, (1, 1), ((0, 3), (2, -1))),
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

_lax = functools.partial(lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _normal(shape, dtype=np.float32, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def _inputs(name, dtype=np.float32):
  batch, image, channels, window, features, strides, padding = _SHAPES[name]
  x = _normal((batch, *image, channels), dtype)
  return x, _normal((*window, channels, features), dtype), strides, padding


@functools.partial(jax.jit, static_argnums=0)
def _value_and_pullback(function, *arguments):
  """Returns the value and the gradients of a random weighting of its entries."""
  out, pullback = jax.vjp(function, *arguments)
  return out, *pullback(_normal(out.shape, out.dtype, seed=1) * jnp.ones_like(out))


def _convolved(function, x, kernel, strides, padding):
  one = functools.partial(function, window_strides=strides, padding=padding)
  return _value_and_pullback(one, x, kernel)


def _ours(x, kernel, window_strides, padding):
  return convolution(x, kernel, window_strides, padding)


def _assert_close(actual, expected, tolerance=1e-5):
  for a, b in zip(actual, expected, strict=True):
    assert a.dtype == b.dtype
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max(initial=0)))


def _second_step(function):
  """Returns what `function` computes in the second step of a compiled scan."""
  _, out = jax.jit(lambda: lax.scan(lambda carry, _: (carry, function()), (), length=2))()
  return [leaf[1] for leaf in out]


class ConvolutionTest(parameterized.TestCase):

  @parameterized.named_parameters((name, name) for name in _SHAPES)
  def test_equals_lax(self, name):
    arguments = _inputs(name)
    _assert_close(_convolved(_ours, *arguments), _convolved(_lax, *arguments))

  @parameterized.parameters(
      'same', 'color', 'few_channels', 'few_pixels', 'tiles', 'sliced_unevenly', 'strided')
  def test_bfloat16(self, name):
    arguments = _inputs(name, jnp.bfloat16)
    _assert_close(
        _convolved(_ours, *arguments), _convolved(_lax, *arguments), tolerance=2**-6)

  @parameterized.parameters('same', 'few_channels', 'tiles', 'sliced_unevenly', 'strided')
  def test_stacked_clients_in_a_scan(self, name):
    x, kernel, strides, padding = _inputs(name)
    xs, kernels = (jnp.stack([a, 2 * a, a[::-1]]) for a in (x, kernel))

    def clients(function):
      return jax.vmap(lambda x, kernel: _convolved(function, x, kernel, strides, padding))(
          xs, kernels)

    _assert_close(_second_step(lambda: clients(_ours)), clients(_lax))

  def test_clients_on_a_mesh(self):
    x, kernel, strides, padding = _inputs('sliced_unevenly')
    mesh = jax.make_mesh((2,), ('clients',), axis_types=(jax.sharding.AxisType.Auto,))

    def client(x, kernel):
      return [a[None] for a in _convolved(_ours, x[0], kernel[0], strides, padding)]

    out = jax.jit(jax.shard_map(
        client, mesh=mesh, in_specs=PartitionSpec('clients'), out_specs=PartitionSpec('clients')))(
            jnp.stack([x, 2 * x]), jnp.stack([kernel, kernel]))
    _assert_close([a[1] for a in out], _convolved(_lax, 2 * x, kernel, strides, padding))

  def test_second_derivative_equals_lax(self):
    x, kernel, strides, padding = _inputs('same')

    def slope(function, kernel):
      def loss(kernel):
        return jnp.sum(function(x, kernel, strides, padding)**3)
      return jnp.sum(jax.grad(loss)(kernel)**2)

    curvature = jax.jit(jax.grad(slope, argnums=1), static_argnums=0)
    _assert_close([curvature(convolution, kernel)], [curvature(_lax, kernel)])

  @parameterized.parameters(
      {'kernel_dilation': 2}, {'input_dilation': 2, 'padding': 1}, {'feature_group_count': 2},
      {'strides': 2}, {'padding': 'CIRCULAR'})
  def test_is_an_argument_of_flax(self, **options):
    x = _normal((2, 9, 9, 4))
    ours = nn.Conv(6, (3, 3), conv_general_dilated=convolution, **options)
    theirs = nn.Conv(6, (3, 3), **options)
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: _normal(leaf.shape), shapes)
    _assert_close([jax.jit(ours.apply)(variables, x)], [jax.jit(theirs.apply)(variables, x)])

  def test_loops_hold_only_convolutions_that_xla_has_kernels_for(self):
    x, kernel, strides, padding = _inputs('sliced_unevenly')

    def labels(function):
      def loss(x, kernel):
        return jnp.sum(function(x, kernel, strides, padding)**2)

      def loop(x, kernel):
        return lax.fori_loop(0, 9, lambda _, pair: jax.grad(loss, (0, 1))(*pair), (x, kernel))

      text = jax.jit(loop).lower(x, kernel).compile().as_text()
      return set(re.findall(r'dim_labels=(\w+->\w+)', text))

    self.assertEqual(labels(convolution), {'b01f_01io->b01f'})
    self.assertGreater(len(labels(_lax)), 1)


if __name__ == '__main__':
  absltest.main()
