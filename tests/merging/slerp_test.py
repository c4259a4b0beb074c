"""Slerp against its formula, and tensors between which there is no angle."""

from absl.testing import absltest, parameterized
import numpy as np
from reference import average as reference
from reference import flat_models, toys

from hmm_jax.merging.slerp import slerp
from hmm_jax.types import InputError

SHARES = (0.0, 0.25, 0.75, 1.0)
SPREADS = (1e-3, 0.1, 1.0)


class SlerpTest(parameterized.TestCase):

  def test_equals_the_formula(self):
    merge = flat_models.merger(*[slerp(t=t) for t in SHARES])
    for spread in SPREADS:
      models, base = flat_models.drawn(2, spread=spread)
      toys.assert_close(merge(models, base), [reference.slerp(*models, t) for t in SHARES],
                        rtol=1e-4, atol=1e-5)

  def test_an_arc_keeps_the_length_that_a_line_loses(self):
    models = [{'x': np.float32([2, 0, 0])}, {'x': np.float32([0, 2, 0])}]
    arc, line = flat_models.merger(slerp(t=0.25), slerp(t=0.25, parallel=0.0))(models, None)
    angle = np.pi / 8
    np.testing.assert_allclose(arc['x'], [2 * np.cos(angle), 2 * np.sin(angle), 0], rtol=1e-6,
                               atol=1e-7)
    np.testing.assert_allclose(line['x'], [1.5, 0.5, 0], rtol=1e-6)

  def test_is_a_line_without_an_angle(self):
    merge, x = flat_models.merger(slerp(t=0.25)), np.float32([1, 2, -3])
    for other in ([0, 0, 0], [3, 6, -9], [-1, -2, 3]):
      for a, b in ((x, np.float32(other)), (np.float32(other), x), (0 * x, 0 * x)):
        (got,) = merge([{'x': a}, {'x': b}], None)
        np.testing.assert_allclose(got['x'], 0.75 * a + 0.25 * b, rtol=1e-6)

  @parameterized.parameters(1, 3)
  def test_refuses_other_than_two_models(self, count):
    models, base = flat_models.drawn(count)
    with self.assertRaisesRegex(InputError, f'got {count} models; expected exactly 2'):
      slerp()(flat_models.stack(models), base, toys.key(0))


if __name__ == '__main__':
  absltest.main()
