"""Activation matching against NumPy's correlations, and planted permutations."""

import functools

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import perceptrons, permutations, toys

from hmm_jax import tree
from hmm_jax.merging.alignment import activation_matching
from hmm_jax.models import resnet, transformer, vit
from hmm_jax.models.classifier import classifier
from hmm_jax.models.lstm import lstm
from hmm_jax.models.mlp import mlp
from hmm_jax.types import Examples, InputError

RNG = np.random.default_rng(0)
VECTORS = Examples(np.float32(RNG.normal(size=(30, 4)) + 1), np.zeros(30, np.int32))
IMAGES = Examples(np.float32(RNG.normal(size=(30, 6, 6, 3))), np.zeros(30, np.int32))
ROWS = RNG.permutation(30)[:28].reshape(4, 7)
match = toys.jit(activation_matching.match_activations, static_argnums=0)


@functools.cache
def network():
  """Returns a perceptron; the units of its first layer are said to stand in three runs."""
  model = mlp((6, 5), classes=3, input_shape=(4,))
  runs = model.symmetry()._replace(runs={'trunk/Dense_0': 3, 'trunk/Dense_1': 1})
  return model._replace(symmetry=lambda: runs)


@functools.cache
def residual():
  """Returns a ResNet of one block: two convolutions write to one group."""
  trunk = resnet.Trunk(resnet.Size((4,), (1,)), 'batch')
  return classifier(trunk, classes=3, input_shape=(6, 6, 3), wiring=resnet.wiring)


@functools.cache
def attentive():
  """Returns a ViT of one block with two heads of three units."""
  trunk = vit.Trunk(vit.Size(6, 1, 2, 3))
  return transformer.with_heads(classifier(
      trunk, classes=3, input_shape=(6, 6, 3), wiring=transformer.wiring), 2)


def drawn(model, seed):
  rng = np.random.default_rng(seed)
  draw = lambda x: np.float32(rng.uniform(0.2, 1, x.shape) * rng.choice([-1, 1], x.shape))
  made = jax.tree.map(draw, jax.eval_shape(model.init, toys.key(0)))
  return {name: value if name == 'params' else jax.tree.map(np.abs, value)
          for name, value in made.items()}


class ActivationsTest(parameterized.TestCase):

  def test_is_the_best_assignment_of_correlated_outputs(self):
    a, b = drawn(network(), 0), drawn(network(), 1)
    found = match(network(), a, b, VECTORS, ROWS)
    x = np.float64(VECTORS.x[ROWS.ravel()])
    self.assertCountEqual(found, ['trunk/Dense_0', 'trunk/Dense_1'])
    for path, runs in network().symmetry().runs.items():
      wanted = perceptrons.correlations(*map(perceptrons.layers, (a, b)), path, x)
      self.assertAlmostEqual(wanted[np.arange(len(wanted)), found[path]].sum(),
                             permutations.best(wanted, runs), places=4)

  @parameterized.parameters(residual, attentive)
  def test_a_planted_permutation_is_found(self, make):
    model, rng = make(), np.random.default_rng(2)
    symmetry, a = model.symmetry(), drawn(model, 3)
    moves = permutations.draw(rng, symmetry)
    b = jax.tree.map(lambda x, groups: np.float32(
        permutations.move(x, groups, moves) * rng.normal(1, 0.01, x.shape)), a, symmetry.axes)
    found = match(model, a, b, IMAGES, ROWS)
    for group, places in moves.items():
      self.assertEqual(places[np.asarray(found[group])].tolist(), [*range(len(places))])

  def test_activation_matching_brings_all_models_into_the_order_of_the_first(self):
    first, symmetry, models = drawn(network(), 0), network().symmetry(), []
    for seed in range(4):
      moves = permutations.draw(np.random.default_rng(seed), symmetry)
      models.append(jax.tree.map(
          lambda x, groups, moves=moves: permutations.move(x, groups, moves), first, symmetry.axes))
    stacked = tree.stack(models)
    toys.assert_far(tree.mean(stacked['params']), models[0]['params'], least=0.1)
    merge = toys.jit(activation_matching.activation_matching(), static_argnums=0)
    # Indices may be of each model.
    got = merge(network(), stacked, None, VECTORS, np.stack([ROWS] * 4), toys.key(0))
    toys.assert_close(got, models[0]['params'])

  def test_units_that_do_not_vary_are_alike_to_none(self):
    for seed in range(20):
      a, b = drawn(network(), 0), drawn(network(), 0)
      silent = np.random.default_rng(seed).permutation(6)[:4]
      for model, units in zip((a, b), np.split(silent, 2), strict=True):
        model['params']['trunk']['Dense_0']['kernel'][:, units] = 0
      found = match(network(), a, b, VECTORS, ROWS)['trunk/Dense_0']
      varied = np.setdiff1d(range(6), silent)
      self.assertEqual(found[varied].tolist(), varied.tolist())

  def test_recurrent_units_are_not_recorded(self):
    model = lstm(3, (4,), vocabulary=7, classes=7, input_shape=(5,))
    tokens = Examples(np.zeros((30, 5), np.int32), np.zeros(30, np.int32))
    variables = drawn(model, 0)
    with self.assertRaisesRegex(InputError, 'got units of trunk/Embed_0, trunk/LSTM_0, whose acti'):
      activation_matching.match_activations(model, variables, variables, tokens, ROWS)


if __name__ == '__main__':
  absltest.main()
