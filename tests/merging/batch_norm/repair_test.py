"""REPAIR against its twin, and the statistics that it promises."""

from absl.testing import absltest
import flax.linen as nn
import jax
import numpy as np
from reference import perceptrons, toys

from hmm_jax import tree
from hmm_jax.merging.batch_norm.repair import repair
from hmm_jax.models import cnn, layers
from hmm_jax.models.classifier import classifier
from hmm_jax.models.mlp import mlp
from hmm_jax.models.symmetry import chain
from hmm_jax.types import Examples

RNG = np.random.default_rng(0)
ROWS = RNG.permutation(30)[:28].reshape(4, 7)
VECTORS = Examples(np.float32(RNG.normal(size=(30, 4)) + 1), np.zeros(30, np.int32))
IMAGES = Examples(np.float32(RNG.normal(size=(30, 6, 6, 3))), np.zeros(30, np.int32))
WEIGHTS = np.float32([0.2, 0.5, 0.3])
mend = toys.jit(repair, static_argnums=0)


class Bare(nn.Module):
  """Convolutions without a bias."""

  @nn.compact
  def __call__(self, x, *, train, mask):
    for features in (4, 5):
      x = nn.relu(layers.conv(x, features, window=3, bias=False))
    return x.mean((1, 2))


def stack(network, count=3, seed=0):
  """Returns models that are all different."""
  rng = np.random.default_rng(seed)
  draw = lambda x: np.float32(rng.uniform(-1, 1, (count, *x.shape)))
  made = jax.tree.map(draw, jax.eval_shape(network.init, toys.key(0)))
  return {name: value if name == 'params' else jax.tree.map(abs, value)
          for name, value in made.items()}


class RepairTest(absltest.TestCase):

  def test_layers_are_those_of_the_twin(self):
    network = mlp((6, 5), classes=3, input_shape=(4,))
    stacked = stack(network)
    merged = tree.mix(WEIGHTS, stacked)
    got = perceptrons.layers(mend(network, merged, stacked, VECTORS, ROWS, weights=WEIGHTS))
    wanted = perceptrons.repair(
        perceptrons.layers(merged), [*map(perceptrons.layers, tree.unstack(stacked))], WEIGHTS,
        np.float64(VECTORS.x[ROWS.ravel()]))
    self.assertLen(wanted, 3)
    for path, of in wanted.items():
      for mine, theirs in zip(got[path], of, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)

  def assert_has_the_statistics(self, network, paths, *, means):
    """Says that outputs of a merged network, repaired, vary as those of the models on average."""
    stacked, x = stack(network), IMAGES.x[ROWS.ravel()]
    merged = tree.mix(WEIGHTS, stacked)
    repaired = mend(network, merged, stacked, IMAGES, ROWS, weights=WEIGHTS)
    see = toys.jit(lambda variables: {
        path: (seen.outputs.mean(axis=0), seen.outputs.std(axis=0))
        for path, seen in network.linear(variables, x).items()})
    goals = tree.mix(WEIGHTS, tree.stack([see(model) for model in tree.unstack(stacked)]))
    before, after = see(merged), see(repaired)
    for path in paths:
      self.assertGreater(np.abs(before[path][1] - goals[path][1]).max(), 0.01)
      for i in [0, 1] if means else [1]:
        np.testing.assert_allclose(after[path][i], goals[path][i], rtol=1e-3, atol=1e-3)
    toys.assert_close(repaired['params']['head'], merged['params']['head'], rtol=0, atol=0)

  def test_convolutions_get_the_mean_statistics(self):
    size = cnn.Size((4, 6), (False, True), window=3, padding=0, hidden=(5,), least=6)
    network = classifier(cnn.Trunk(size), classes=3, input_shape=(6, 6, 3), wiring=chain)
    self.assert_has_the_statistics(
        network, ['trunk/Conv_0', 'trunk/Conv_1', 'trunk/Dense_0'], means=True)

  def test_without_a_bias_only_deviations_are_reached(self):
    network = classifier(Bare(), classes=3, input_shape=(6, 6, 3))
    self.assert_has_the_statistics(network, ['trunk/Conv_0', 'trunk/Conv_1'], means=False)

  def test_a_unit_that_does_not_vary_keeps_its_scale(self):
    network = mlp((6,), classes=3, input_shape=(4,))
    stacked = stack(network)
    merged = tree.mix(WEIGHTS, stacked)
    kernel = merged['params']['trunk']['Dense_0']['kernel'].at[:, 2].set(1e-6)
    bias = np.full(6, 1234.567, np.float32)  # Whose square is rounded.
    merged['params']['trunk']['Dense_0'] = {'kernel': kernel, 'bias': bias}
    got = mend(network, merged, stacked, VECTORS, ROWS, weights=WEIGHTS)
    np.testing.assert_array_equal(got['params']['trunk']['Dense_0']['kernel'][:, 2], kernel[:, 2])


if __name__ == '__main__':
  absltest.main()
