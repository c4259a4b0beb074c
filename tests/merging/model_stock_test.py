"""Model Stock against its formula, and where models agree wholly or not at all."""

from absl.testing import absltest
import numpy as np
from reference import average as reference
from reference import flat_models, toys

from hmm_jax.merging.model_stock import model_stock

run = flat_models.merger(model_stock())


class ModelStockTest(absltest.TestCase):

  def test_equals_the_formula(self):
    for count in (1, 4):
      models, base = flat_models.drawn(count, spread=0.7)
      common = flat_models.drawn(1, seed=1)[1]  # So that models agree, but not wholly.
      models = [{name: model[name] + common[name] for name in base} for model in models]
      toys.assert_close(run(models, base), [reference.model_stock(models, base)], rtol=1e-4,
                        atol=1e-5)

  def test_of_two_is_the_point_nearest_to_the_base(self):
    # So the paper finds t: what is left of the mean is orthogonal to the line of the two.
    away = np.float32([[3, 1, 2], [1, 3, 2]])
    (got,) = run([{'x': x} for x in away], {'x': np.zeros(3, np.float32)})
    cosine = 10 / 14
    np.testing.assert_allclose(got['x'], 2 * cosine / (1 + cosine) * away.mean(axis=0), rtol=1e-5)

  def test_agreement_keeps_the_mean_and_disagreement_the_base(self):
    cases = {'agree': ((2, 1, 3), (3, 1, 5), (2.5, 1, 4)),
             'orthogonal': ((2, 1, 1), (1, 2, 1), (1, 1, 1)),
             'opposite': ((2, 1, 1), (-3, 1, 1), (1, 1, 1)),
             'one has not moved': ((2, 1, 1), (1, 1, 1), (1, 1, 1)),
             'none has moved': ((1, 1, 1), (1, 1, 1), (1, 1, 1))}
    for name, (a, b, wanted) in cases.items():
      with self.subTest(name):
        (got,) = run([{'x': np.float32(a)}, {'x': np.float32(b)}], {'x': np.ones(3, np.float32)})
        self.assertEqual(got['x'].tolist(), [*wanted])


if __name__ == '__main__':
  absltest.main()
