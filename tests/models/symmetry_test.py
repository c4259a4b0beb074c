"""Units that may change places: networks compute the same, and no axis is forgotten."""

import functools
import math
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import permutations, toys

from hmm_jax.merging.alignment.permutation import permute
from hmm_jax.models import cnn, layers, resnet, transformer, vgg16, vit
from hmm_jax.models.classifier import classifier, preprocessed
from hmm_jax.models.fusion import fusion
from hmm_jax.models.gpt import gpt
from hmm_jax.models.lstm import lstm
from hmm_jax.models.mlp import mlp
from hmm_jax.models.symmetry import chain
from hmm_jax.types import InputError

IMAGES = dict(classes=3, input_shape=(8, 8, 3))


def convolutional():
  """Returns a narrow network whose last convolution is flattened."""
  size = cnn.Size((4, 6), (False, True), window=3, padding=0, hidden=(5,), least=6)
  return classifier(cnn.Trunk(size), wiring=chain, **IMAGES)


def residual(norm):
  """Returns a narrow ResNet with a block of either kind."""
  trunk = resnet.Trunk(resnet.Size((4, 8), (1, 1)), norm)
  return classifier(trunk, wiring=resnet.wiring, **IMAGES)


def attentive():
  """Returns a narrow ViT of two blocks, each with two heads of three units."""
  trunk = vit.Trunk(vit.Size(6, 2, 2, 4))
  return transformer.with_heads(classifier(trunk, wiring=transformer.wiring, **IMAGES), 2)


SMALL = {
    'mlp': lambda: mlp((6, 5), **IMAGES),
    'cnn': convolutional,
    'lstm': lambda: lstm(3, (4, 5), vocabulary=7, classes=7, input_shape=(5,)),
    'vit': attentive,
    'gpt': lambda: gpt(1, width=6, heads=3, vocabulary=7, classes=7, input_shape=(5,)),
    'fusion-image': lambda: fusion((4, 6), 1, 5, **IMAGES),
    'fusion-text': lambda: fusion((1,), 4, 5, classes=3, input_shape=(7,)),
    **{f'resnet-{norm}': functools.partial(residual, norm) for norm in layers.NORMS},
}
# A ResNet's stage is one group, the first one with the stem; inside, each block has its own.
WIDTHS = {
    'softmax': (lambda: mlp((), **IMAGES), []),
    'mlp': (SMALL['mlp'], [6, 5]),
    'lstm': (SMALL['lstm'], [3, 4, 5]),
    # The stream, then queries with keys, values, and the perceptron of each block.
    'vit': (SMALL['vit'], [6, *2 * [6, 6, 24]]),
    'gpt': (SMALL['gpt'], [6, 6, 6, 24]),
    'fusion-image': (SMALL['fusion-image'], [4, 6, 5]),
    'fusion-text': (SMALL['fusion-text'], [4, 5]),
    **{f'cnn-{size}': (functools.partial(cnn.cnn, size, classes=3, input_shape=(28, 28, 1)),
                       [*made.convs, *made.hidden]) for size, made in cnn.SIZES.items()},
    'vgg16': (lambda: vgg16.vgg16(classes=3, input_shape=(64, 64, 3)),
              [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6 + [4096] * 2),
    'resnet9': (lambda: resnet.resnet('9-narrow', **IMAGES),
                [8] * 2 + [16] * 2 + [32] * 2 + [64] * 2),
    'resnet20': (lambda: resnet.resnet('20', norm='group', **IMAGES),
                 [16] * 4 + [32] * 4 + [64] * 4),
}


def shapes(model):
  return jax.eval_shape(model.init, jax.random.key(0))


def drawn(model):
  """Returns variables of which no two units are alike."""
  rng = np.random.default_rng(0)

  def draw(path, x):
    values = rng.uniform(0.2, 1.8, x.shape) / math.sqrt(math.prod(x.shape[:-1]))
    return np.float32(values * (1 if path[-1].key == 'var' else rng.choice([-1, 1], x.shape)))

  return jax.tree.map_with_path(draw, shapes(model))


class SymmetryTest(parameterized.TestCase):

  def assert_computes_the_same(self, model, x):
    rng, symmetry, variables = np.random.default_rng(2), model.symmetry(), drawn(model)
    matching = permutations.draw(rng, symmetry)
    move = toys.jit(lambda variables: permute(symmetry, variables, matching))
    moved = move(variables)
    toys.assert_far(moved, variables)
    for train in [False, True][:len(variables)]:
      run = toys.jit(lambda variables, train=train: model.apply(variables, x, train=train))
      (wanted, after), (got, moved_after) = run(variables), run(moved)
      self.assertGreater(np.abs(wanted).max(), 0.1)
      np.testing.assert_allclose(got, wanted, atol=1e-4)
      toys.assert_close(moved_after, move(after), atol=1e-4)

  @parameterized.named_parameters((name, name) for name in SMALL)
  def test_a_network_computes_the_same(self, name):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 7, (4, 5))
    x = {'lstm': tokens, 'gpt': tokens, 'fusion-text': rng.normal(size=(4, 7))}.get(
        name, rng.normal(size=(4, 8, 8, 3)))
    self.assert_computes_the_same(SMALL[name](), x)

  def test_so_does_a_narrow_vgg16(self):
    dense = layers.dense
    narrow = lambda x, features, **options: dense(x, min(features, 6), **options)
    with (mock.patch.object(vgg16, '_STAGES', ((4, 8),)),
          mock.patch.object(layers, 'dense', narrow)):
      model = vgg16.vgg16(norm='group', classes=3, input_shape=(32, 32, 3))
      self.assertEqual([*model.symmetry().size.values()], [4, 8, 6, 6])
      self.assertEqual([*model.symmetry().runs.values()], [2, 4, 1, 1])
      self.assert_computes_the_same(model, np.random.default_rng(1).normal(size=(2, 32, 32, 3)))

  @parameterized.named_parameters((name, name) for name in WIDTHS)
  def test_all_axes_but_inputs_and_classes_are_covered(self, name):
    make, widths = WIDTHS[name]
    model = make()
    symmetry, first, variables = model.symmetry(), model.modules()[0], shapes(model)
    self.assertEqual([*symmetry.size.values()], widths)
    for (path, leaf), groups in zip(
        jax.tree.leaves_with_path(variables),
        jax.tree.structure(variables).flatten_up_to(symmetry.axes), strict=True):
      *module, kind = (step.key for step in path[1:])
      window = leaf.ndim - 2 if kind == 'kernel' else 0
      # The entries of an embedding are tokens or positions, in an order that is given.
      is_first = '/'.join(module) == first or kind == 'embedding'
      is_last = module == ['head']
      open_axes = ([True] * window + [is_first] * (leaf.ndim - window - 1) + [is_last])
      self.assertEqual([group is None for group in groups], open_axes, (module, kind))
      for group, length in zip(groups, leaf.shape, strict=True):
        self.assertEqual(length % symmetry.size.get(group, 1), 0)

  @parameterized.named_parameters((norm, norm) for norm in layers.NORMS)
  def test_channels_that_are_normalized_together_stay_together(self, norm):
    symmetry = resnet.resnet('9-narrow', norm=norm, **IMAGES).symmetry()
    runs = {group: math.gcd(32, count // 2) if norm == 'group' else 1
            for group, count in symmetry.size.items()}
    self.assertEqual(symmetry.runs, runs)

  def test_heads_are_tied(self):
    symmetry = attentive().symmetry()
    ties = [tuple(f'trunk/Block_{n}/attention/{layer}' for layer in ('query', 'value'))
            for n in range(2)]
    self.assertEqual(symmetry.ties, tuple(ties))
    self.assertEqual(symmetry.runs, {group: 2 if 'attention' in group else 1
                                     for group in symmetry.size})

  @parameterized.parameters('query', 'value')
  def test_heads_of_queries_and_values_apart_compute_otherwise(self, layer):
    model = attentive()
    symmetry, variables = model.symmetry(), drawn(model)
    matching = {group: np.arange(count) for group, count in symmetry.size.items()}
    x = np.random.default_rng(1).normal(size=(4, 8, 8, 3))
    run = toys.jit(lambda matching: model.apply(permute(symmetry, variables, matching), x)[0])
    group = f'trunk/Block_0/attention/{layer}'
    toys.assert_far(run({**matching, group: np.roll(np.arange(6), 3)}), run(matching), least=0.01)

  def test_apart_they_are_normalized_otherwise(self):
    model = residual('group')
    symmetry, variables = model.symmetry(), drawn(model)
    matching = {group: np.arange(count) for group, count in symmetry.size.items()}
    x = np.random.default_rng(1).normal(size=(4, 8, 8, 3))
    run = toys.jit(lambda matching: model.apply(permute(symmetry, variables, matching), x)[0])
    apart = {**matching, 'trunk/Conv_0': np.array([0, 2, 1, 3])}
    toys.assert_far(run(apart), run(matching), least=0.01)

  def test_raw_inputs_make_no_difference(self):
    model = SMALL['mlp']()
    raw = preprocessed(model, normalize=lambda x: x / 255)
    self.assertEqual(raw.symmetry(), model.symmetry())

  def test_a_network_that_does_not_say_has_none(self):
    with self.assertRaisesRegex(InputError, 'got trunk=ConvTrunk, whose wiring is unknown; expec'):
      toys.cnn().symmetry()
    both = fusion((4,), 4, 5, classes=3, input_shape={'image': (8, 8, 3), 'text': (7,)})
    with self.assertRaisesRegex(InputError, 'got trunk=Trunk, .* expected .* fusion with one bran'):
      both.symmetry()


if __name__ == '__main__':
  absltest.main()
