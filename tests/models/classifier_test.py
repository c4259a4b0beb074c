"""The `Model` contract: structure, dtypes, masks, keys, groups, raw inputs."""

import functools

from absl.testing import absltest, parameterized
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from reference import toys
from reference.variables import drawn

from hmm_jax import tree
from hmm_jax.models import layers
from hmm_jax.models.classifier import classifier, preprocessed
from hmm_jax.models.cnn import cnn
from hmm_jax.models.mlp import mlp
from hmm_jax.models.pooling import max_pool
from hmm_jax.models.resnet import resnet
from hmm_jax.models.vit import Size, Trunk
from hmm_jax.types import InputError

_SHAPE = (6, 6, 3)


class Normed(nn.Module):
  """A small trunk with every kind of layer that has a say in the contract."""

  norm: str

  @nn.compact
  def __call__(self, x, *, train, mask):
    x = layers.conv(x, 4, window=3, padding=1, bias=False)
    x = nn.relu(layers.normalize(x, self.norm, train=train, mask=mask))
    x = layers.conv(max_pool(x), 6, window=3, strides=2, padding=1)
    x = layers.normalize(x, self.norm, train=train, mask=mask).reshape(x.shape[0], -1)
    return layers.Dropout(0.5)(x, train=train)


_MODELS = {
    'softmax': lambda **options: mlp((), **options),
    'mlp': lambda **options: mlp((8,), **options),
    'batch_norm': lambda **options: classifier(Normed('batch'), **options),
    'group_norm': lambda **options: classifier(Normed('group'), **options),
    'vit': lambda **options: classifier(Trunk(Size(8, 1, 2, 3)), **options),
}


@functools.cache
def _model(name, dtype=jnp.float32):
  return _MODELS[name](classes=5, input_shape=_SHAPE, dtype=dtype)


@functools.cache
def _variables(name):
  return drawn(_model(name))


def _images(batch, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, *_SHAPE)), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _step(model, variables, x, weights, mask):
  """Returns the gradient of a loss with a weight a row, the logits and the variables."""
  def loss(params):
    logits, new = model.apply({**variables, 'params': params}, x, train=True, mask=mask)
    return jnp.sum(weights[:, None] * jax.nn.log_softmax(logits)**2), (logits, new)
  gradient, (logits, new) = jax.grad(loss, has_aux=True)(variables['params'])
  return gradient, logits, new


def _assert_trees_close(a, b, tolerance=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


class ClassifierTest(parameterized.TestCase):

  @parameterized.product(name=list(_MODELS), dtype=('float32', 'bfloat16'))
  def test_contract(self, name, dtype):
    model = _model(name, jnp.dtype(dtype))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    self.assertEqual(
        set(variables), {'params', 'batch_stats'} if name == 'batch_norm' else {'params'})
    self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(variables)}, {jnp.dtype('float32')})
    for train in (False, True):
      for mask in (None, jnp.array([True, True, False])):
        logits, after = jax.eval_shape(
            lambda v, x, key, train=train, mask=mask:
            model.apply(v, x, train=train, mask=mask, key=key),
            variables, _images(3), jax.random.key(1))
        self.assertEqual((logits.shape, logits.dtype), ((3, 5), jnp.float32))
        jax.tree.map(lambda a, b: self.assertEqual((a.shape, a.dtype), (b.shape, b.dtype)),
                     variables, after)

  def test_bfloat16_computes_in_bfloat16(self):
    full, half = _model('batch_norm'), _model('batch_norm', jnp.bfloat16)
    variables = _variables('batch_norm')
    a, b = (jax.jit(model.features)(variables, _images(3)) for model in (full, half))
    _assert_trees_close(a, b, tolerance=0.05)
    np.testing.assert_array_equal(b, b.astype(jnp.bfloat16).astype(jnp.float32))

  @parameterized.parameters('softmax', 'batch_norm')
  def test_head_of_features_gives_logits(self, name):
    model = _model(name)
    variables = _variables(name)
    logits, after = jax.jit(model.apply)(variables, _images(3))
    head = variables['params']['head']
    features = jax.jit(model.features)(variables, _images(3))
    _assert_trees_close(features @ head['kernel'] + head['bias'][None], logits)
    _assert_trees_close(jax.jit(model.head)(variables, features), logits)
    jax.tree.map(np.testing.assert_array_equal, after, variables)

  def test_the_head_stays_in_single_precision(self):
    model = _model('batch_norm', jnp.bfloat16)
    variables = _variables('batch_norm')
    features = np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32)
    head = variables['params']['head']
    expected = np.asarray(features, np.float64) @ np.asarray(head['kernel'], np.float64)
    _assert_trees_close(
        model.head(variables, features), expected + np.asarray(head['bias'], np.float64))

  @parameterized.parameters(
      (lambda: cnn('lenet', classes=10, input_shape=(16, 16, 3)), [
          'trunk/Conv_0', 'trunk/Conv_1', 'trunk/Dense_0', 'trunk/Dense_1', 'head']),
      (lambda: resnet('9-narrow', classes=10, input_shape=(8, 8, 3)), [
          'trunk/Conv_0', 'trunk/BatchNorm_0',
          *[f'trunk/Block_{block}/{layer}_{i}' for block in range(4)
            # The first stage keeps the shape: its shortcut has no projection.
            for i in range(3 if block else 2) for layer in ('Conv', 'BatchNorm')],
          'head']),
      (lambda: resnet('9-narrow', norm='none', classes=10, input_shape=(8, 8, 3)), [
          'trunk/Conv_0', *[f'trunk/Block_{block}/Conv_{i}' for block in range(4)
                            for i in range(3 if block else 2)], 'head']),
      (lambda: _model('softmax'), ['head']),
      (lambda: _model('mlp'), ['trunk/Dense_0', 'head']))
  def test_modules_are_in_the_order_in_which_an_input_meets_them(self, make, expected):
    model = make()
    self.assertEqual(model.modules(), tuple(expected))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    self.assertEqual(set(jax.tree.leaves(model.groups(shapes))), set(expected))

  def test_the_order_is_not_that_of_the_names(self):
    class Back(nn.Module):

      @nn.compact
      def __call__(self, x, *, train, mask):
        last, shared = nn.Dense(4, name='a'), nn.Dense(4, name='b')
        return last(shared(nn.relu(shared(nn.Dense(4, name='c')(x)))))

    model = classifier(Back(), classes=2, input_shape=(4,))
    # What is met twice is named once, where it is met first.
    self.assertEqual(model.modules(), ('trunk/c', 'trunk/b', 'trunk/a', 'head'))

  def test_groups_are_module_paths(self):
    model = _model('batch_norm')
    variables = _variables('batch_norm')
    groups = model.groups(variables)
    self.assertEqual(jax.tree.structure(groups), jax.tree.structure(variables))
    self.assertEqual(groups['params']['head'], {'kernel': 'head', 'bias': 'head'})
    self.assertEqual(groups['params']['trunk']['Conv_0'], {'kernel': 'trunk/Conv_0'})
    self.assertEqual(
        groups['batch_stats']['trunk']['BatchNorm_1'],
        {'mean': 'trunk/BatchNorm_1', 'var': 'trunk/BatchNorm_1'})

  def test_masked_rows_count_nowhere(self):
    model = _model('batch_norm')
    variables = _variables('batch_norm')
    # The bias in front of BatchNorm has a gradient of rounding only: with these weights, little.
    x, weights = _images(7), jnp.arange(1., 8) / 8
    keep = np.array([0, 2, 3, 6])
    mask = jnp.zeros(7, bool).at[keep].set(True)
    gradient, logits, after = _step(model, variables, x, weights * mask, mask)
    expected = _step(model, variables, x[keep], weights[keep], None)
    _assert_trees_close((gradient, logits[keep], after), expected, tolerance=1e-4)

  def test_a_wholly_masked_batch_changes_nothing(self):
    model = _model('batch_norm')
    variables = _variables('batch_norm')
    mask = jnp.zeros(7, bool)
    gradient, logits, after = _step(model, variables, _images(7), jnp.zeros(7), mask)
    self.assertTrue(tree.all_finite((gradient, logits)))
    jax.tree.map(np.testing.assert_array_equal, after, variables)

  def test_training_moves_the_statistics_only(self):
    model = _model('batch_norm')
    variables = _variables('batch_norm')
    _, after = jax.jit(lambda v, x: model.apply(v, x, train=True))(variables, _images(3))
    jax.tree.map(np.testing.assert_array_equal, after['params'], variables['params'])
    before, stem = (v['batch_stats']['trunk']['BatchNorm_0'] for v in (variables, after))
    convolved = nn.Conv(4, (3, 3), use_bias=False).apply(
        {'params': variables['params']['trunk']['Conv_0']}, _images(3))
    for name, value in (('mean', convolved.mean((0, 1, 2))), ('var', convolved.var((0, 1, 2)))):
      np.testing.assert_allclose(stem[name], 0.9 * before[name] + 0.1 * value, atol=1e-5)

  def test_statistics_are_those_of_the_batch(self):
    x, model = np.random.default_rng(0).normal(2, 3, (7, 4)), toys.norm()
    variables = toys.start(toys.norm)
    expected = {'batch_stats': {'trunk': {'BatchNorm_0': {
        'mean': x.mean(axis=0), 'var': x.var(axis=0)}}}}
    toys.assert_close(model.statistics(variables, np.float32(x)), expected)
    moved = {**variables, 'batch_stats': jax.tree.map(lambda v: v + 5, variables['batch_stats'])}
    toys.assert_close(model.statistics(moved, np.float32(x)), expected)

  def test_statistics_of_a_deep_network_are_those_of_training(self):
    model, variables = _model('batch_norm'), _variables('batch_norm')
    got = jax.jit(model.statistics)(variables, _images(3))
    _, after = jax.jit(lambda v, x: model.apply(v, x, train=True))(variables, _images(3))
    self.assertEqual(got.keys(), {'batch_stats'})
    # Training keeps nine tenths of what was there.
    mixed = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, variables['batch_stats'],
                         got['batch_stats'])
    _assert_trees_close(mixed, after['batch_stats'])

  def test_without_batch_norm_there_are_no_statistics(self):
    self.assertEqual(_model('softmax').statistics(_variables('softmax'), _images(3)), {})

  def test_stacked_clients_equal_one_by_one(self):
    model = _model('batch_norm')
    stacked = drawn(model, count=2)
    x, mask = _images(14).reshape(2, 7, *_SHAPE), jnp.ones((2, 7), bool)
    weights = jnp.arange(14.).reshape(2, 7)
    together = jax.vmap(functools.partial(_step, model))(stacked, x, weights, mask)
    apart = [_step(model, tree.take(stacked, k), x[k], weights[k], mask[k]) for k in range(2)]
    _assert_trees_close(together, tree.stack(apart), tolerance=1e-4)

  def test_a_key_in_training_drives_dropout(self):
    model = _model('group_norm')
    variables = _variables('group_norm')

    @functools.partial(jax.jit, static_argnums=0)
    def logits(train, key):
      return model.apply(variables, _images(3), train=train, key=key)[0]

    keys = jax.random.split(jax.random.key(1))
    plain = logits(False, None)
    np.testing.assert_array_equal(plain, logits(False, keys[0]))
    np.testing.assert_array_equal(plain, logits(True, None))
    self.assertGreater(jnp.abs(plain - logits(True, keys[0])).max(), 0.01)
    self.assertGreater(jnp.abs(logits(True, keys[1]) - logits(True, keys[0])).max(), 0.01)

  def test_inputs_may_be_a_pytree(self):
    class Pair(nn.Module):

      @nn.compact
      def __call__(self, x, *, train, mask):
        return jnp.concatenate([nn.Embed(9, 4)(x['word']), x['image']], axis=-1)

    spec = {
        'word': jax.ShapeDtypeStruct((), jnp.int32),
        'image': jax.ShapeDtypeStruct((3,), jnp.float32)}
    model = classifier(Pair(), classes=2, input_shape=spec, dtype=jnp.bfloat16)
    variables = drawn(model)
    x = {'word': jnp.array([0, 8], jnp.int32), 'image': jnp.ones((2, 3), jnp.uint8)}
    self.assertEqual(model.features(variables, x).shape, (2, 7))


class PreprocessedTest(parameterized.TestCase):

  def _model(self, augment=None):
    return preprocessed(
        _model('group_norm'), normalize=lambda x: x / jnp.float32(255) - 0.5, augment=augment)

  def test_normalizes_raw_inputs(self):
    raw = np.random.default_rng(0).integers(0, 256, (3, *_SHAPE), np.uint8)
    plain, model = _model('group_norm'), self._model()
    variables = _variables('group_norm')
    x = raw / np.float32(255) - np.float32(0.5)
    for name in ('apply', 'features'):
      _assert_trees_close(
          jax.jit(getattr(model, name))(variables, raw),
          jax.jit(getattr(plain, name))(variables, x))
    features, (logits, _) = model.features(variables, raw), model.apply(variables, raw)
    _assert_trees_close(model.head(variables, features), logits)
    self.assertEqual(model.modules(), plain.modules())
    self.assertEqual(model.groups(variables), plain.groups(variables))

  def test_statistics_of_normalized_inputs_without_augmentation(self):
    x = np.random.default_rng(0).integers(0, 256, (7, 4), np.uint8)
    model = preprocessed(toys.norm(), normalize=lambda x: x / jnp.float32(255) - 0.5,
                         augment=lambda key, x: 255 - x)
    expected = x / 255 - 0.5
    toys.assert_close(model.statistics(toys.start(toys.norm), x)['batch_stats'], {
        'trunk': {'BatchNorm_0': {'mean': expected.mean(axis=0), 'var': expected.var(axis=0)}}})

  def test_augments_in_training_given_a_key(self):
    raw = np.random.default_rng(0).integers(0, 256, (2, *_SHAPE), np.uint8)
    seen = []

    def augment(key, x):
      seen.append((key, x.dtype))
      return 255 - x

    model = self._model(augment)
    variables = _variables('group_norm')
    key = jax.random.key(1)
    model.features(variables, raw, train=True)
    model.features(variables, raw, key=key)
    self.assertEmpty(seen)
    augmented = model.features(variables, raw, train=True, key=key)
    [(key_augment, dtype)] = seen
    self.assertEqual(dtype, np.uint8)
    # Dropout has a key of its own, neither the caller's nor the augmentation's.
    for other in (key, key_augment):
      same = self._model().features(variables, 255 - raw, train=True, key=other)
      self.assertGreater(jnp.abs(augmented - same).max(), 0.01)


class InputErrorTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('cnn', lambda **o: cnn('lenot', **o), 'got size=lenot'),
      ('resnet', lambda **o: resnet('9', **o), 'got size=9'),
      ('resnet_norm', lambda **o: resnet(norm='bath', **o), 'got norm=bath'),
      ('mlp', lambda **o: mlp((8, 0), **o), r'got hidden=\(8, 0\)'),
      ('cnn_small_images', lambda **o: cnn('lenet', **{**o, 'input_shape': (8, 15, 3)}),
       'got .*lenet with images of 8x15'),
      ('cnn_vectors', lambda **o: cnn('lenet', **{**o, 'input_shape': (768,)}),
       r'got .*lenet with inputs of shape \(768,\)'))
  def test_names_what_is_wrong(self, factory, message):
    with self.assertRaisesRegex(InputError, message):
      factory(classes=2, input_shape=_SHAPE)


if __name__ == '__main__':
  absltest.main()
