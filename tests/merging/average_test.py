"""Averages against NumPy's, and where their formulas end."""

from functools import cache

from absl.testing import absltest, parameterized
import numpy as np
from reference import average as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.merging import average
from hmm_jax.types import InputError

KEY = toys.key(0)
SHAPES = {'conv': (2, 2, 3, 4), 'bias': (5,), 'scalar': ()}


def drawn(count, *, seed=0, spread=1.0):
  rng = np.random.default_rng(seed)
  common = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
  models = [{name: np.float32(x + spread * rng.normal(size=x.shape)) for name, x in common.items()}
            for _ in range(count)]
  return models, {name: np.float32(rng.normal(size=x.shape)) for name, x in common.items()}


@cache
def compiled(make, **settings):
  return toys.jit(make(**settings))


def run(make, models, base=None, **settings):
  return compiled(make, **settings)(tree.stack(models), base, KEY)


class MeanTest(parameterized.TestCase):

  @parameterized.parameters(((0.2, 0.3, 0.5),), ((2.0, -1.0, 0.0),))
  def test_weighted(self, weights):
    models, _ = drawn(3)
    toys.assert_close(run(average.weighted, models, weights=weights),
                      reference.weighted(models, weights))

  def test_uniform(self):
    models, _ = drawn(3)
    toys.assert_close(run(average.uniform, models), reference.weighted(models, [1 / 3] * 3))

  def test_rounded_weights_sum_to_one(self):
    models, _ = drawn(3)
    toys.assert_close(run(average.weighted, models, weights=(np.float32(1 / 3),) * 3),
                      run(average.uniform, models))

  @parameterized.parameters(
      ([0.5, 0.6], r'got weights=\[0.5, 0.6\], which sum to 1.1; expected a sum of 1'),
      ([1, 1], 'which sum to 2'), ([], 'which sum to 0'), ([float('nan'), 1], 'sum to nan'))
  def test_weights_are_never_normalized(self, weights, message):
    with self.assertRaisesRegex(InputError, message):
      average.weighted(weights=weights)

  def test_a_weight_for_each_model(self):
    models, _ = drawn(3)
    with self.assertRaisesRegex(InputError, 'expected 3 finite numbers, one a model'):
      average.weighted(weights=[0.5, 0.5])(tree.stack(models), None, KEY)

  def test_normalized_by_the_caller(self):
    self.assertEqual(average.normalized([1, 2, 5]), [0.125, 0.25, 0.625])
    for weights in ([1, -1], [float('inf'), 1], [float('nan')], []):
      with self.assertRaisesRegex(InputError, 'expected a finite sum other than 0'):
        average.normalized(weights)


class SlerpTest(parameterized.TestCase):

  @parameterized.parameters(0.0, 0.25, 1.0)
  def test_equals_the_formula(self, t):
    for spread in (1e-3, 0.1, 1.0):
      models, _ = drawn(2, spread=spread)
      toys.assert_close(run(average.slerp, models, t=t), reference.slerp(*models, t), rtol=1e-4,
                        atol=1e-5)

  def test_an_arc_keeps_the_length_that_a_line_loses(self):
    a, b = {'x': np.float32([2, 0, 0])}, {'x': np.float32([0, 2, 0])}
    got = run(average.slerp, [a, b], t=0.25)['x']
    angle = np.pi / 8
    np.testing.assert_allclose(got, [2 * np.cos(angle), 2 * np.sin(angle), 0], rtol=1e-6)

  @parameterized.parameters(([0, 0, 0],), ([3, 6, -9],), ([-1, -2, 3],))
  def test_is_a_line_without_an_angle(self, other):
    a, b = {'x': np.float32([1, 2, -3])}, {'x': np.float32(other)}
    for models in ([a, b], [b, a]):
      line = 0.25 * models[1]['x'] + 0.75 * models[0]['x']
      np.testing.assert_allclose(run(average.slerp, models, t=0.25)['x'], line, rtol=1e-6)

  def test_of_tensors_that_are_both_zero(self):
    a = {'x': np.zeros(3, np.float32)}
    self.assertEqual(run(average.slerp, [a, a], t=0.25)['x'].tolist(), [0, 0, 0])

  @parameterized.parameters(-0.1, 1.1, float('nan'))
  def test_a_t_outside(self, t):
    with self.assertRaisesRegex(InputError, f'got t={t}; expected from 0 to 1'):
      average.slerp(t=t)

  @parameterized.parameters(1, 3)
  def test_other_than_two_models(self, count):
    models, _ = drawn(count)
    with self.assertRaisesRegex(InputError, f'got {count} models; expected 2'):
      average.slerp()(tree.stack(models), None, KEY)


class ModelStockTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 4)
  def test_equals_the_formula(self, count):
    models, base = drawn(count, spread=0.7)
    toys.assert_close(run(average.model_stock, models, base),
                      reference.model_stock(models, base), rtol=1e-4, atol=1e-5)

  def test_of_two_is_the_point_nearest_to_the_start(self):
    # So the paper finds t: what is left of the mean is orthogonal to the line of the two.
    away = np.float32([[3, 1, 2], [1, 3, 2]])
    got = run(average.model_stock, [{'x': x} for x in away], {'x': np.zeros(3, np.float32)})['x']
    cosine = 10 / 14
    np.testing.assert_allclose(got, 2 * cosine / (1 + cosine) * away.mean(axis=0), rtol=1e-5)

  def test_agreement_keeps_the_mean_and_disagreement_the_start(self):
    start = {'x': np.float32([1, 1])}
    model = lambda *x: {'x': np.float32(x)}
    stock = lambda *models: run(average.model_stock, models, start)['x'].tolist()
    self.assertEqual(stock(model(2, 3), model(3, 5)), [2.5, 4])
    self.assertEqual(stock(model(2, 1), model(1, 2)), [1, 1])  # Orthogonal.
    self.assertEqual(stock(model(2, 1), model(-3, 1)), [1, 1])  # Opposite.
    self.assertEqual(stock(model(2, 1), model(1, 1)), [1, 1])  # One has not moved.
    self.assertEqual(stock(model(1, 1), model(1, 1)), [1, 1])


if __name__ == '__main__':
  absltest.main()
