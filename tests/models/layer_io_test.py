"""Linear layers read as matrices: what comes out is what goes in times the kernel."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference.variables import drawn

from hmm_jax.models import cnn, resnet, vit
from hmm_jax.models.classifier import classifier, preprocessed
from hmm_jax.models.gpt import gpt
from hmm_jax.models.lstm import lstm
from hmm_jax.models.mlp import mlp

_IMAGES = dict(classes=5, input_shape=(8, 8, 3))
_MODELS = {
    'softmax': lambda: mlp((), **_IMAGES),
    'mlp': lambda: mlp((8, 6), **_IMAGES),
    'cnn': lambda: classifier(cnn.Trunk(cnn.Size(
        (4, 6), (False, True), window=3, padding=0, hidden=(5,), least=6)), **_IMAGES),
    # Convolutions with strides, without a bias and with one.
    'resnet': lambda: classifier(resnet.Trunk(resnet.Size((4, 6), (1, 1)), 'batch'), **_IMAGES),
    'vit': lambda: classifier(vit.Trunk(vit.Size(6, 1, 2, 4)), **_IMAGES),
    'resnet_biased': lambda: classifier(
        resnet.Trunk(resnet.Size((4, 6), (1, 1)), 'none'), **_IMAGES),
}


def images(batch):
  return jnp.asarray(np.random.default_rng(0).normal(size=(batch, 8, 8, 3)), jnp.float32)


class LinearTest(parameterized.TestCase):

  @parameterized.named_parameters((name, name) for name in _MODELS)
  def test_outputs_are_inputs_times_the_kernel(self, name):
    model = _MODELS[name]()
    variables, x = drawn(model), images(2)
    seen, logits = jax.jit(lambda variables, x: (
        model.linear(variables, x), model.apply(variables, x)[0]))(variables, x)
    kernels = {'/'.join(step.key for step in path[:-1]): leaf
               for path, leaf in jax.tree.leaves_with_path(variables['params'])
               if path[-1].key == 'kernel'}
    self.assertCountEqual(seen, kernels)
    for path, (inputs, outputs) in seen.items():
      layer = variables['params']
      for step in path.split('/'):
        layer = layer[step]
      kernel = np.asarray(layer['kernel'], np.float64)
      expected = np.asarray(inputs, np.float64) @ kernel.reshape(-1, kernel.shape[-1])
      expected = expected + np.asarray(layer.get('bias', 0.0))
      np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen['head'].outputs, logits, rtol=1e-5)

  def test_rows_of_one_image_stand_together(self):
    model = _MODELS['cnn']()
    variables, x = drawn(model), images(3)
    linear = jax.jit(model.linear)
    all_three, second = linear(variables, x), linear(variables, x[1:2])
    places = len(second['trunk/Conv_0'].inputs)
    np.testing.assert_allclose(all_three['trunk/Conv_0'].inputs[places:2 * places],
                               second['trunk/Conv_0'].inputs, rtol=1e-6)

  def test_raw_inputs_are_normalized(self):
    model = _MODELS['mlp']()
    raw = preprocessed(model, normalize=lambda x: x * 2)
    variables, x = drawn(model), images(2)
    np.testing.assert_allclose(raw.linear(variables, x)['head'].inputs,
                               model.linear(variables, 2 * x)['head'].inputs, rtol=1e-6)

  def test_of_a_transformer_all_dense_layers_of_a_block(self):
    model = gpt(1, width=8, heads=2, vocabulary=7, classes=7, input_shape=(3,))
    seen = jax.eval_shape(model.linear, drawn(model), jnp.zeros((2, 3), jnp.int32))
    block = ['attention/query', 'attention/key', 'attention/value', 'attention/out', 'up', 'down']
    self.assertCountEqual(seen, [*(f'trunk/Block_0/{layer}' for layer in block), 'head'])
    self.assertEqual(seen['trunk/Block_0/attention/key'].inputs.shape, (2 * 3, 8))
    # The last block is computed at the last position only.
    self.assertEqual(seen['trunk/Block_0/down'].inputs.shape, (2, 4 * 8))

  def test_of_a_recurrent_network_only_the_head_is_linear(self):
    model = lstm(4, (5,), vocabulary=7, classes=7, input_shape=(3,))
    seen = jax.eval_shape(model.linear, drawn(model), jnp.zeros((2, 3), jnp.int32))
    self.assertEqual(list(seen), ['head'])


if __name__ == '__main__':
  absltest.main()
