"""Values, statistics and names of the network of two branches."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import toys
from reference.variables import drawn

from hmm_jax import tree
from hmm_jax.models.classifier import preprocessed
from hmm_jax.models.fusion import fusion
from hmm_jax.types import InputError

SHAPES = {'both': {'image': (9, 8, 3), 'text': (7,)}, 'image': (9, 8, 3), 'text': (7,)}
# In the order in which an input meets them.
PATHS = {
    'image': tuple(f'trunk/image/{layer}_{i}' for i in (0, 1) for layer in ('Conv', 'BatchNorm')),
    'text': ('trunk/text/Dense_0', 'trunk/text/BatchNorm_0'),
    'joint': ('trunk/joint/Dense_0', 'trunk/joint/BatchNorm_0', 'head'),
}


@functools.cache
def made(kind, dtype=jnp.float32):
  """Returns a model, variables away from their start, and its functions, compiled."""
  model = fusion((3, 2), 4, 5, classes=3, input_shape=SHAPES[kind], dtype=dtype)
  variables = drawn(model)
  return model, variables, jax.jit(model.apply, static_argnames='train')


def inputs(kind, batch=4, seed=1):
  rng = np.random.default_rng(seed)
  draw = lambda shape: np.float32(rng.normal(size=(batch, *shape)))
  shapes = SHAPES[kind]
  return jax.tree.map(draw, shapes, is_leaf=lambda shape: isinstance(shape, tuple))


def normalized(x, variables, path):
  """BatchNorm as in its paper, in evaluation; `path` leads to its parameters."""
  scale, statistics = (
      functools.reduce(lambda tree, step: tree[step], path, np64(variables[part]))
      for part in ('params', 'batch_stats'))
  return ((x - statistics['mean']) / np.sqrt(statistics['var'] + 1e-5) * scale['scale']
          + scale['bias'])


def np64(variables):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)


def features(variables, x):
  """The trunk in float64, a pixel and a window at a time."""
  params, parts = np64(variables['params'])['trunk'], []
  if 'image' in x:
    image = np.asarray(x['image'], np.float64)
    for i in (0, 1):
      kernel = params['image'][f'Conv_{i}']['kernel']
      padded = np.pad(image, [(0, 0), (1, 1), (1, 1), (0, 0)])
      out = np.zeros((*image.shape[:3], kernel.shape[-1]))
      for h in range(image.shape[1]):
        for w in range(image.shape[2]):
          out[:, h, w] = np.einsum('bijc,ijco->bo', padded[:, h:h + 3, w:w + 3], kernel)
      out = np.maximum(normalized(out, variables, ('trunk', 'image', f'BatchNorm_{i}')), 0)
      image = np.stack([np.stack([out[:, 2 * h:2 * h + 2, 2 * w:2 * w + 2].max((1, 2))
                                  for w in range(out.shape[2] // 2)], 1)
                        for h in range(out.shape[1] // 2)], 1)
    parts.append(image.mean((1, 2)))
  if 'text' in x:
    parts.append(dense(x['text'], params, variables, 'text'))
  return dense(np.concatenate(parts, 1), params, variables, 'joint')


def dense(x, params, variables, name):
  layer = params[name]['Dense_0']
  out = x @ layer['kernel'] + layer['bias']
  return np.maximum(normalized(out, variables, ('trunk', name, 'BatchNorm_0')), 0)


class FusionTest(parameterized.TestCase):

  @parameterized.named_parameters((kind, kind) for kind in SHAPES)
  def test_forward_pass(self, kind):
    model, variables, apply = made(kind)
    x = inputs(kind)
    expected = features(variables, x if kind == 'both' else {kind: x})
    self.assertGreater(np.mean(expected > 0), 0.2)
    found = jax.jit(model.features)(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    head = np64(variables['params'])['head']
    logits, after = apply(variables, x)
    np.testing.assert_allclose(
        logits, expected @ head['kernel'] + head['bias'], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.head(variables, found), logits, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after, variables)

  @parameterized.named_parameters((kind, kind) for kind in SHAPES)
  def test_every_leaf_is_of_a_module(self, kind):
    model, variables, _ = made(kind)
    expected = tuple(path for part, paths in PATHS.items() for path in paths
                     if part in ('joint', kind) or kind == 'both')
    self.assertEqual(model.modules(), expected)
    groups = model.groups(variables)
    self.assertEqual(jax.tree.structure(groups), jax.tree.structure(variables))
    self.assertEqual(set(jax.tree.leaves(groups['params'])), set(expected))
    self.assertEqual(set(jax.tree.leaves(groups['batch_stats'])),
                     {path for path in expected if 'BatchNorm' in path})
    seen = jax.jit(model.linear)(variables, inputs(kind))
    self.assertEqual(set(seen), {path for path in expected if 'BatchNorm' not in path})
    for path, (rows, out) in seen.items():
      layer = np64(functools.reduce(lambda v, step: v[step], path.split('/'), variables['params']))
      kernel = layer['kernel'].reshape(-1, layer['kernel'].shape[-1])
      expected = np.asarray(rows, np.float64) @ kernel + layer.get('bias', 0)
      np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)

  def test_text_is_normalized_where_it_has_been_embedded(self):
    model, variables, _ = made('both')
    x = inputs('both', batch=9)
    layer = np64(variables['params'])['trunk']['text']['Dense_0']
    embedded = x['text'] @ layer['kernel'] + layer['bias']
    found = jax.jit(model.statistics)(variables, x)['batch_stats']['trunk']
    toys.assert_close(found['text']['BatchNorm_0'], {
        'mean': embedded.mean(axis=0), 'var': embedded.var(axis=0)})
    self.assertEqual({name: len(layers) for name, layers in found.items()},
                     {'image': 2, 'text': 1, 'joint': 1})

  @parameterized.named_parameters((kind, kind) for kind in SHAPES)
  def test_masked_rows_count_nowhere(self, kind):
    _, variables, apply = made(kind)
    x, keep = inputs(kind, batch=5), np.array([0, 2, 3])
    mask = np.isin(np.arange(5), keep)
    logits, after = apply(variables, x, train=True, mask=mask)
    few, expected = apply(variables, jax.tree.map(lambda leaf: leaf[keep], x), train=True)
    np.testing.assert_allclose(logits[keep], few, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                 after['batch_stats'], expected['batch_stats'])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after['batch_stats'],
                         variables['batch_stats'])
    self.assertGreater(min(jax.tree.leaves(moved)), 1e-4)

  def test_raw_inputs_are_normalized(self):
    model, variables, apply = made('both')
    raw = preprocessed(model, normalize=lambda x: tree.scale(jnp.float32(0.5), x))
    x = inputs('both')
    np.testing.assert_allclose(
        jax.jit(raw.apply)(variables, x)[0], apply(variables, tree.scale(np.float32(0.5), x))[0],
        rtol=1e-5)

  def test_half_precision(self):
    model, variables, apply = made('both', jnp.bfloat16)
    self.assertEqual({leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(
        model.init, jax.random.key(0)))}, {jnp.dtype('float32')})
    x = inputs('both')
    features = jax.jit(model.features)(variables, x)
    np.testing.assert_array_equal(features, features.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(apply(variables, x)[0], made('both')[2](variables, x)[0], atol=0.2)

  def test_sizes(self):
    shapes = jax.tree.map(jnp.shape, made('both')[1]['params'])
    trunk = shapes['trunk']
    self.assertEqual((trunk['image']['Conv_0'], trunk['image']['Conv_1']),
                     ({'kernel': (3, 3, 3, 3)}, {'kernel': (3, 3, 3, 2)}))
    self.assertEqual((trunk['text']['Dense_0']['kernel'], trunk['joint']['Dense_0']['kernel'],
                      shapes['head']['kernel']), ((7, 4), (6, 5), (5, 3)))

  def test_convolutions_are_drawn_as_in_residual_networks(self):
    model = fusion((16, 32), 1, 1, classes=2, input_shape=(4, 4, 3))
    kernel = model.init(jax.random.key(0))['params']['trunk']['image']['Conv_1']['kernel']
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 32)), rtol=0.05)

  def test_the_defaults(self):
    model = fusion(classes=2, input_shape={'image': (64, 64, 3), 'text': (2048,)})
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0))['params'])
    trunk = shapes['trunk']
    self.assertEqual([trunk['image'][f'Conv_{i}']['kernel'] for i in range(3)],
                     [(3, 3, 3, 16), (3, 3, 16, 32), (3, 3, 32, 64)])
    self.assertEqual((trunk['text']['Dense_0']['kernel'], trunk['joint']['Dense_0']['kernel'],
                      shapes['head']['kernel']), ((2048, 128), (192, 128), (128, 2)))

  @parameterized.parameters(
      (dict(channels=()), r'got channels=\(\), embedding=4, hidden=5'),
      (dict(channels=(3, 0)), r'got channels=\(3, 0\)'),
      (dict(embedding=0), 'embedding=0'), (dict(hidden=0), 'hidden=0'),
      (dict(channels=(1, 1, 1, 1)), r'got channels=\(1, 1, 1, 1\) with images of 9x8'),
      (dict(input_shape=(6, 5)), r'got model=fusion with inputs of shape \(6, 5\)'),
      (dict(input_shape={'image': (7,), 'text': (7,)}), 'got model=fusion with inputs of shape {'),
      (dict(input_shape={'image': (6, 5, 3), 'sound': (7,)}), 'got model=fusion with inputs of'))
  def test_names_what_is_wrong(self, changes, message):
    settings = {'channels': (3, 2), 'embedding': 4, 'hidden': 5, 'input_shape': SHAPES['both']}
    with self.assertRaisesRegex(InputError, message):
      fusion(**{**settings, **changes}, classes=3)

  @parameterized.named_parameters((kind, kind) for kind in SHAPES)
  def test_takes_texts_that_are_embedded(self, kind):
    model, variables, apply = made(kind)
    x = inputs(kind)
    embedded = jax.jit(model.embed)(variables, x)
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(embedded)]
    wanted = {'both': [(9, 8, 3), (4,)], 'image': [(9, 8, 3)], 'text': [(4,)]}
    self.assertEqual(shapes, wanted[kind])
    for mode in (False, True):
      toys.assert_close(apply(variables, embedded, train=mode), apply(variables, x, train=mode))
    statistics = jax.jit(model.statistics)
    toys.assert_close(statistics(variables, embedded), statistics(variables, x))


if __name__ == '__main__':
  absltest.main()
