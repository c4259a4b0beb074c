"""Averages against NumPy's, and weights that are no average."""

from absl.testing import absltest, parameterized
import numpy as np
from reference import average as reference
from reference import flat_models, toys

from hmm_jax.merging import average
from hmm_jax.types import InputError

WEIGHTS = {'positive': (0.2, 0.3, 0.5), 'negative': (2.0, -1.0, 0.0),
           'rounded': (np.float32(1 / 3),) * 3}


class AverageTest(parameterized.TestCase):

  def test_weighted_and_uniform_equal_numpys(self):
    models, base = flat_models.drawn(3)
    got = flat_models.merger(average.uniform(), *[
        average.weighted(weights=weights) for weights in WEIGHTS.values()])(models, base)
    wanted = [reference.weighted(models, weights) for weights in ([1 / 3] * 3, *WEIGHTS.values())]
    toys.assert_close(got, wanted)

  def test_weighted_never_normalizes(self):
    with self.assertRaisesRegex(InputError, r'got weights=\[0.5, 0.6\], which sum to 1.1'):
      average.weighted(weights=[0.5, 0.6])
    with self.assertRaisesRegex(InputError, 'got weights=.* sum to nan'):
      average.weighted(weights=[float('nan'), 1])

  def test_normalized_weights_sum_to_one(self):
    self.assertEqual(average.normalized([1, 2, 5]), [0.125, 0.25, 0.625])
    for weights in ([1, -1], [float('inf'), 1], [float('nan')], []):
      with self.assertRaisesRegex(InputError, 'got weights='):
        average.normalized(weights)


if __name__ == '__main__':
  absltest.main()
