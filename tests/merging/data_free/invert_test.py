"""Inversion against its terms in NumPy, and what it finds."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import invert as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.merging.data_free import invert
from hmm_jax.merging.data_free.invert import Terms

PLAIN = Terms()
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5, 2)), jnp.float32)


@cache
def trained():
  """Returns a model whose statistics are those of some rows, and the rows."""
  x = jnp.asarray(np.random.default_rng(1).normal([1, -2, 0, 3], [0.5, 1, 2, 3], (16, 4)),
                  jnp.float32)
  model, variables = toys.norm(), toys.start(toys.norm)
  noisy = jax.tree.map(lambda p: p + jax.random.normal(toys.key(3), p.shape), variables['params'])
  return {'params': noisy, **model.statistics(variables, x)}, x


def run(steps=300, terms=PLAIN, augment=invert.as_they_are, count=16, model=toys.norm,
        given=None):
  """Inverts `count` rows of noise, labels 0, 1, 2, 0, ..."""
  search = jax.jit(invert.inversion(model(), steps=steps, lr=0.1, terms=terms, augment=augment))
  like = jnp.zeros((1, 4)) if model is toys.norm else jnp.zeros((1, 4, 4, 1))
  start = invert.noise(toys.key(1), like, count)
  variables = trained()[0] if given is None else given
  return start, *search(variables, start, jnp.arange(count) % toys.CLASSES, toys.key(2))


class ObjectiveTest(parameterized.TestCase):

  @parameterized.parameters(Terms(0.5), Terms(0, labels=2.0), Terms(0, norm=3.0), Terms(1, 2, 0, 3))
  def test_equals_its_terms(self, *terms):
    terms, (variables, _) = Terms(*terms), trained()
    x, labels = np.random.default_rng(2).normal(size=(6, 4)), np.arange(6) % toys.CLASSES
    twin = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    norm, running = twin['params']['trunk']['BatchNorm_0'], twin['batch_stats']['trunk']
    params = {**twin['params']['head'], 'scale': norm['scale'], 'shift': norm['bias']}
    wanted = (terms.statistics * reference.statistics_loss(running['BatchNorm_0'], x)
              + terms.labels * reference.cross_entropy(params, running['BatchNorm_0'], x, labels)
              + terms.norm * reference.length(x))
    got = jax.jit(lambda x: invert.objective(toys.norm(), variables, x, labels, terms))(
        jnp.float32(x))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)

  def test_total_variation(self):
    np.testing.assert_allclose(
        invert.total_variation(IMAGES), reference.total_variation(np.float64(IMAGES)), rtol=1e-5)

  def test_variation_and_norm_are_of_all_inputs(self):
    x = {'image': IMAGES, 'text': jnp.ones((3, 2))}
    flat = np.concatenate([np.reshape(IMAGES, (3, -1)), np.ones((3, 2))], axis=1)
    of = lambda terms: invert.objective(None, {}, x, jnp.zeros(3, int), terms)
    with self.subTest('variation'), absltest.mock.patch.object(
        invert, 'statistics_loss', return_value=0.0):
      np.testing.assert_allclose(of(Terms(0, variation=2.0)),
                                 2 * reference.total_variation(np.float64(IMAGES)), rtol=1e-5)
      np.testing.assert_allclose(of(Terms(0, norm=1.0)), reference.length(flat), rtol=1e-5)

  def test_is_zero_with_a_gradient_of_zero_where_the_statistics_are_met(self):
    # Mean and variance of so many small integers are exact.
    x = np.random.default_rng(0).integers(-4, 5, (16, 4)).astype(np.float32)
    variables = {**trained()[0], 'batch_stats': {'trunk': {'BatchNorm_0': {
        'mean': x.mean(axis=0), 'var': x.var(axis=0)}}}}
    value, gradient = jax.jit(jax.value_and_grad(
        lambda x: invert.statistics_loss(toys.norm(), variables, x)))(x)
    self.assertEqual(value, 0)
    self.assertTrue(tree.all_finite(gradient))
    flat = jax.jit(jax.grad(invert.total_variation))(jnp.ones((1, 3, 3, 1)))
    np.testing.assert_array_equal(flat, np.zeros((1, 3, 3, 1)))


class InversionTest(parameterized.TestCase):

  def test_meets_the_statistics_and_keeps_the_best(self):
    start, x, losses = run()
    variables, _ = trained()
    loss = lambda x: invert.statistics_loss(toys.norm(), variables, x)
    np.testing.assert_allclose(losses[0], loss(start), rtol=1e-5)
    np.testing.assert_allclose(loss(x), losses.min(), rtol=1e-4, atol=1e-5)
    self.assertLess(losses.min(), losses[0] / 50)

  def test_the_best_is_not_the_last(self):
    # Close to the target already, and a rate that leaps away from it.
    search = invert.inversion(toys.norm(), steps=4, lr=5.0, terms=Terms(),
                              augment=invert.as_they_are)
    variables, rows = trained()
    near = rows + 0.01 * jax.random.normal(toys.key(4), rows.shape)
    x, losses = jax.jit(search)(variables, near, jnp.zeros(16, int), toys.key(2))
    self.assertGreater(losses[1:].min(), losses[0])
    np.testing.assert_array_equal(x, near)

  def test_labels_are_met_where_they_count(self):
    predict = jax.jit(lambda x: toys.norm().apply(trained()[0], x)[0])
    _, x, _ = run(terms=Terms(labels=5.0))
    np.testing.assert_array_equal(predict(x).argmax(axis=1), np.arange(16) % toys.CLASSES)
    _, ignored, _ = run()
    logits = predict(ignored)
    self.assertGreater(np.sum(logits.argmax(axis=1) != np.arange(16) % toys.CLASSES), 3)

  def test_of_images_behind_a_convolution(self):
    model, variables = toys.cnn(), toys.start(toys.cnn)
    real = jnp.asarray(np.random.default_rng(3).normal(1, 2, (16, 4, 4, 1)), jnp.float32)
    variables = {'params': variables['params'], **model.statistics(variables, real)}
    start, x, losses = run(model=toys.cnn, given=variables, augment=invert.shift_and_flip(1))
    self.assertEqual(x.shape, start.shape)
    loss = lambda x: invert.statistics_loss(model, variables, x)
    other = jnp.asarray(np.random.default_rng(4).normal(1, 2, (16, 4, 4, 1)), jnp.float32)
    self.assertLess(loss(x), loss(other))
    self.assertLess(losses.min(), losses[0] / 3)


class AugmentTest(parameterized.TestCase):

  def test_rolls_and_mirrors_the_whole_batch_alike(self):
    augment, seen = jax.jit(invert.shift_and_flip(1)), set()
    everything = {(down, right, flip): np.roll(IMAGES, (down, right), (1, 2))[:, :, ::flip]
                  for down in (-1, 0, 1) for right in (-1, 0, 1) for flip in (1, -1)}
    for draw in range(80):
      moved = augment(toys.key(draw), {'image': IMAGES, 'text': jnp.ones((3, 2))})
      np.testing.assert_array_equal(moved['text'], np.ones((3, 2)))
      found = [how for how, x in everything.items() if np.array_equal(moved['image'], x)]
      self.assertLen(found, 1)
      seen.update(found)
    self.assertGreater(len(seen), 14)

  @parameterized.parameters((16, 1), (17, 2))
  def test_by_itself_moves_by_a_sixteenth_of_the_side(self, side, most):
    images = jnp.zeros((1, side, side, 1)).at[0, side // 2, side // 2].set(1)
    moved = jax.jit(jax.vmap(invert.shift_and_flip(), (0, None)))(
        jax.random.split(toys.key(0), 100), images)
    rows = np.asarray(moved[:, 0, :, :, 0].max(axis=2).argmax(axis=1)) - side // 2
    self.assertEqual({*rows.tolist()}, {*range(-most, most + 1)})

  def test_noise_has_the_shapes_of_rows(self):
    x = invert.noise(toys.key(0), {'image': IMAGES, 'text': jnp.ones((3, 2))}, 500)
    self.assertEqual(jax.tree.map(jnp.shape, x), {'image': (500, 4, 5, 2), 'text': (500, 2)})
    np.testing.assert_allclose(x['image'].std(), 1, rtol=0.05)
    self.assertLess(abs(np.corrcoef(x['text'].ravel(), np.ravel(x['image'])[:1000])[0, 1]), 0.2)


if __name__ == '__main__':
  absltest.main()
