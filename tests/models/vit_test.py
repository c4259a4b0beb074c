"""Sizes, the forward pass against a NumPy twin, gradients and what is refused."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import attention
from reference.variables import drawn

from hmm_jax import tree
from hmm_jax.models import transformer, vit
from hmm_jax.models.classifier import classifier
from hmm_jax.types import InputError

SHAPE = (6, 9, 2)


def images(batch):
  return np.random.default_rng(0).normal(size=(batch, *SHAPE)).astype(np.float32)


@functools.cache
def made(dtype='float32'):
  """Returns a ViT of two blocks, each with two heads of four units, and variables."""
  model = classifier(vit.Trunk(vit.Size(8, 2, 2, 3)), classes=5, input_shape=SHAPE,
                     dtype=jnp.dtype(dtype))
  return transformer.with_heads(model, 2), drawn(model)


def twin(params, image):
  """Returns the logits of one image in float64."""
  trunk, head = (jax.tree.map(np.float64, params[name]) for name in ('trunk', 'head'))
  patches = [image[i:i + 3, j:j + 3].ravel() for i in (0, 3) for j in (0, 3, 6)]
  tokens = [trunk['token']['embedding'][0],
            *(attention.affine(trunk['patches'], patch) for patch in patches)]
  stream = attention.stream(trunk, np.stack(tokens), heads=2, causal=False)
  return attention.affine(head, stream[0])


class VitTest(parameterized.TestCase):

  # Those of timm and torchvision.
  @parameterized.parameters(('tiny', 5_717_416), ('small', 22_050_664), ('b16', 86_567_656),
                            ('b32', 88_224_232))
  def test_parameters(self, size, count):
    model = vit.vit(size, classes=1000, input_shape=(224, 224, 3))
    self.assertEqual(tree.size(model.shapes), count)

  def test_parameters_of_the_smallest(self):
    model = vit.vit(classes=10, input_shape=(28, 28, 1))
    self.assertEqual(tree.size(model.shapes), 205_066)
    self.assertEqual(model.shapes['params']['trunk']['positions']['embedding'].shape, (50, 64))
    coarse = vit.vit(patch=7, classes=10, input_shape=(28, 28, 1))
    self.assertEqual(coarse.shapes['params']['trunk']['positions']['embedding'].shape, (17, 64))

  def test_forward_pass(self):
    model, variables = made()
    logits = jax.jit(model.apply)(variables, images(4))[0]
    expected = [twin(variables['params'], image) for image in images(4)]
    np.testing.assert_allclose(logits, expected, atol=1e-5)

  @parameterized.parameters('float32', 'bfloat16')
  def test_gradients_are_finite_and_reach_every_parameter(self, dtype):
    model, variables = made(dtype)
    loss = lambda params: jnp.sum(model.apply({'params': params}, images(8), train=True)[0]**2)
    gradient = jax.jit(jax.grad(loss))(variables['params'])
    for path, leaf in jax.tree.leaves_with_path(gradient):
      self.assertTrue(np.isfinite(leaf).all())
      if path[-2].key == 'key' and path[-1].key == 'bias':
        continue  # It adds the same to all scores of a query.
      self.assertGreater(np.abs(leaf).max(), 0, path)

  def test_bfloat16_computes_in_bfloat16(self):
    (full, variables), (half, _) = made(), made('bfloat16')
    a, b = (jax.jit(model.features)(variables, images(8)) for model in (full, half))
    np.testing.assert_allclose(a, b, atol=0.1)
    np.testing.assert_array_equal(b, b.astype(jnp.bfloat16).astype(jnp.float32))

  def test_masked_images_count_for_nothing(self):
    model, variables = made()
    apply, x = jax.jit(model.apply), images(3)
    mask = np.array([True, True, False])
    logits = apply(variables, x, mask=mask)[0]
    np.testing.assert_allclose(logits[:2], apply(variables, x[:2])[0], atol=1e-5)
    self.assertTrue(np.isfinite(apply(variables, x, mask=np.zeros(3, bool))[0]).all())

  def test_stacked_clients_equal_one_by_one(self):
    model, _ = made()
    stacked, x = drawn(model, count=2), images(6).reshape(2, 3, *SHAPE)
    step = jax.grad(lambda variables, x: jnp.sum(model.apply(variables, x, train=True)[0]**2))
    together, alone = jax.jit(jax.vmap(step))(stacked, x), jax.jit(step)
    apart = tree.stack([alone(tree.take(stacked, k), x[k]) for k in range(2)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
                 together, apart)

  def test_initialized_as_in_the_authors_code(self):
    model = vit.vit(classes=10, input_shape=(28, 28, 1))
    params = model.init(jax.random.key(0))['params']['trunk']
    up = params['Block_0']['up']
    self.assertBetween(np.abs(up['kernel']).max(), 0.95 * (6 / 320)**0.5, (6 / 320)**0.5)
    np.testing.assert_array_equal(up['bias'], 0)
    np.testing.assert_allclose(params['patches']['kernel'].std(), 1 / 4, rtol=0.1)
    np.testing.assert_allclose(params['positions']['embedding'].std(), 0.02, rtol=0.1)

  @parameterized.parameters(
      ({'size': 'b8'}, 'got size=b8; expected one of micro, tiny'),
      ({'patch': 5}, 'got size=micro, patch=5 with images of 28x28; .*both sides: 1, 2, 4, 7, 14'),
      ({'size': 'b16'}, 'got size=b16, patch=16 with images of 28x28'),
      ({'input_shape': (28, 1)}, r'got size=micro with inputs of shape \(28, 1\)'))
  def test_names_what_is_wrong(self, settings, message):
    with self.assertRaisesRegex(InputError, message):
      vit.vit(**{'classes': 2, 'input_shape': (28, 28, 1), **settings})


if __name__ == '__main__':
  absltest.main()
