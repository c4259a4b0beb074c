"""Task arithmetic against NumPy's."""

from absl.testing import absltest
from reference import flat_models, toys

from hmm_jax.merging.task_arithmetic import task_arithmetic

WEIGHTS = (0.5, 2.0, -1.0)


class TaskArithmeticTest(absltest.TestCase):

  def test_task_arithmetic_equals_numpys(self):
    models, base = flat_models.drawn(3)
    deltas = flat_models.subtract(models, base)
    got = flat_models.merger(task_arithmetic(), task_arithmetic(scale=-0.4, weights=WEIGHTS))(
        models, base)
    wanted = [{name: base[name] + scale * sum(w * delta[name] for w, delta in zip(weights, deltas))
               for name in base} for scale, weights in ((0.3, (1, 1, 1)), (-0.4, WEIGHTS))]
    toys.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
