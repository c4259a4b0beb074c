"""Weight matching finds planted permutations, and of any two models a local optimum."""

import functools
import math

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import permutations, planted, toys

from hmm_jax import tree
from hmm_jax.merging.alignment import weight_matching
from hmm_jax.merging.alignment.permutation import identity, permute
from hmm_jax.models import cnn, resnet, transformer, vit
from hmm_jax.models.classifier import classifier
from hmm_jax.models.gpt import gpt
from hmm_jax.models.lstm import lstm
from hmm_jax.models.mlp import mlp
from hmm_jax.models.symmetry import chain


def residual():
  """Returns a ResNet of one block, with BatchNorm."""
  trunk = resnet.Trunk(resnet.Size((4,), (1,)), 'batch')
  return classifier(trunk, classes=3, input_shape=(8, 8, 3), wiring=resnet.wiring)


def convolutional():
  """Returns a narrow network whose last convolution is flattened."""
  size = cnn.Size((4, 6), (False, True), window=3, padding=0, hidden=(5,), least=6)
  return classifier(cnn.Trunk(size), classes=3, input_shape=(8, 8, 3), wiring=chain)


def attentive():
  """Returns a vision transformer of one block, with three heads of two units."""
  trunk = vit.Trunk(vit.Size(6, 1, 3, 4))
  return transformer.with_heads(classifier(
      trunk, classes=3, input_shape=(8, 8, 1), wiring=transformer.wiring), 3)


NETWORKS = {
    'softmax': lambda: mlp((), classes=3, input_shape=(4,)),
    'mlp': lambda: mlp((6, 4), classes=3, input_shape=(4,)),
    'cnn': convolutional,
    'resnet': residual,
    'lstm': lambda: lstm(3, (4,), vocabulary=7, classes=7, input_shape=(5,)),
    'vit': attentive,
    'gpt': lambda: gpt(1, width=8, heads=2, vocabulary=7, classes=7, input_shape=(5,)),
}


@functools.cache
def network(name):
  return NETWORKS[name]()


@functools.cache
def symmetry(name):
  """Returns a network's symmetry; the first units of 'mlp' are said to stand in two runs."""
  own = network(name).symmetry()
  return own._replace(runs={'trunk/Dense_0': 2, 'trunk/Dense_1': 1}) if name == 'mlp' else own


@functools.cache
def match(name):
  """Returns (key, a, b) -> the matching, and b permuted by it."""
  def run(key, a, b):
    found = weight_matching.match_weights(key, symmetry(name), a, b)
    return found, permute(symmetry(name), b, found)

  return toys.jit(run)


@functools.cache
def align():
  return toys.jit(lambda key, stacked: weight_matching.align_by_weights(
      key, symmetry('mlp'), stacked))


def drawn(name, seed):
  """Returns the variables of a model drawn at random."""
  rng = np.random.default_rng(seed)

  def draw(path, x):
    values = rng.uniform(-1, 1, x.shape) / math.sqrt(math.prod(x.shape[:-1]))
    # Where biases are large, they alone tell the units apart.
    middle, spread = {'scale': (1, 0.1), 'var': (1, 0.1), 'bias': (0, 0.1)}.get(
        path[-1].key, (0, 1))
    return np.float32(middle + spread * values)

  return jax.tree.map_with_path(draw, jax.eval_shape(network(name).init, jax.random.key(0)))


def elsewhere(name, variables, seed, *, noise=0.01):
  """Returns a model whose units are moved and whose parameters differ a bit, and the moves."""
  rng = np.random.default_rng([seed, 1])
  moves = permutations.draw(rng, symmetry(name))
  moved = jax.tree.map(lambda x, groups: permutations.move(x, groups, moves), variables,
                       symmetry(name).axes)
  disturb = lambda x: x + np.float32(noise * np.std(x) * rng.normal(size=x.shape))
  return {**moved, 'params': jax.tree.map(disturb, moved['params'])}, moves


def tables(name, a, b):
  """Returns (array, array, groups) of each parameter, as the twin takes them."""
  a, b = a['params'], b['params']
  groups = jax.tree.structure(a).flatten_up_to(symmetry(name).axes['params'])
  return [*zip(jax.tree.leaves(a), jax.tree.leaves(b), groups, strict=True)]


class MatchWeightsTest(parameterized.TestCase):

  @parameterized.named_parameters((name, name) for name in NETWORKS)
  def test_a_planted_permutation_is_found(self, name):
    # With these seeds a perceptron ends elsewhere if the first sweep is as the others.
    for seed in {'mlp': (1, 40)}.get(name, range(3)):
      a = drawn(name, seed)
      b, moves = elsewhere(name, a, seed)
      found, back = match(name)(toys.key(seed), a, b)
      for group, places in moves.items():
        self.assertEqual(places[np.asarray(found[group])].tolist(), [*range(len(places))])
      toys.assert_close(back['params'], a['params'], rtol=0, atol=0.06)
      if 'batch_stats' in a:
        toys.assert_close(back['batch_stats'], a['batch_stats'], rtol=0, atol=0)

  @parameterized.named_parameters((name, name) for name in ('mlp', 'lstm'))
  def test_of_any_two_models_no_group_by_itself_can_gain(self, name):
    for seed in (15, 17, 51, 59):  # Some take two sweeps, some three.
      a, b = drawn(name, seed), drawn(name, 1000 + seed)
      b = jax.tree.map(lambda x, y: x + np.float32(1.5) * y, a, b)
      found = jax.tree.map(np.asarray, match(name)(toys.key(seed), a, b)[0])
      self.assert_at_best(name, tables(name, a, b), found)

  def assert_at_best(self, name, table, found):
    """Says that moving one group alone gains nothing, nor does leaving all as they are."""
    stay = jax.tree.map(np.asarray, identity(symmetry(name)))
    self.assertGreaterEqual(permutations.agreement(table, found) + 1e-4,
                            permutations.agreement(table, stay))
    for group, count in symmetry(name).size.items():
      if all(groups.count(group) < 2 for _, _, groups in table):  # Else it is no assignment.
        gains = permutations.gains(table, group, count, found)
        self.assertAlmostEqual(gains[np.arange(count), found[group]].sum(),
                               permutations.best(gains, symmetry(name).runs[group]), places=4)

  def test_models_that_are_alike_already_stay(self):
    a = drawn('resnet', 0)
    found, _ = match('resnet')(toys.key(0), a, jax.tree.map(lambda x: 2 * x, a))
    toys.assert_close(found, identity(symmetry('resnet')), rtol=0, atol=0)

  def test_the_key_is_of_the_order(self):
    a, b = drawn('lstm', 19), drawn('lstm', 1019)
    ends = {str(jax.tree.map(np.ndarray.tolist, jax.tree.map(np.asarray, match('lstm')(
        toys.key(seed), a, b)[0]))) for seed in range(6)}
    self.assertLen(ends, 2)


class AlignByWeightsTest(parameterized.TestCase):
  # So many that the mean of all others, while their orders differ, says little.
  COUNT = 13

  def test_planted_permutations_are_found(self):
    first = drawn('mlp', 0)
    others = [elsewhere('mlp', first, seed)[0] for seed in range(self.COUNT - 1)]
    aligned = align()(toys.key(0), tree.stack([first, *others]))
    for model in tree.unstack(aligned):
      toys.assert_close(model, first, rtol=0, atol=0.06)

  def test_in_the_end_nobody_can_agree_more_with_the_mean_of_the_others(self):
    models = [drawn('mlp', seed) for seed in range(self.COUNT)]
    aligned = tree.unstack(align()(toys.key(0), tree.stack(models)))
    toys.assert_close(aligned[0], models[0], rtol=0, atol=0)
    stay = jax.tree.map(np.asarray, identity(symmetry('mlp')))
    for i in range(1, self.COUNT):
      mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *aligned[:i], *aligned[i + 1:])
      MatchWeightsTest.assert_at_best(self, 'mlp', tables('mlp', mean, aligned[i]), stay)

  def test_a_single_model_comes_back(self):
    stacked = tree.stack([drawn('mlp', 0)])
    with jax.disable_jit():
      aligned = weight_matching.align_by_weights(toys.key(0), symmetry('mlp'), stacked)
    toys.assert_close(aligned, stacked, rtol=0, atol=0)

  def test_weight_matching_is_the_mean_of_models_in_one_order(self):
    first, stacked = planted.models()
    toys.assert_far(tree.mean(stacked['params']), first['params'], least=0.1)
    merge = planted.merge(weight_matching.weight_matching())
    toys.assert_close(merge(stacked), first['params'], rtol=1e-3, atol=1e-4)
    noisy = planted.noisy(first)
    toys.assert_close(merge(noisy), tree.mean(noisy['params']))  # So near that none moves.


if __name__ == '__main__':
  absltest.main()
