"""Several models begin apart, and the first where one alone would."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import toys

from hmm_jax import tree
from hmm_jax.client.initial import begun_from, initial_models


class InitialModelsTest(parameterized.TestCase):

  @parameterized.parameters(1, 3)
  def test_the_first_is_that_of_one_alone_and_all_differ(self, count):
    models = tree.unstack(initial_models(toys.linear(), toys.key(0), count))
    self.assertLen(models, count)
    jax.tree.map(np.testing.assert_array_equal, models[0], toys.linear().init(toys.key(0)))
    for k, model in enumerate(models):
      for other in models[:k]:
        toys.assert_far(model, other, least=0.01)

  @parameterized.parameters(0.0, 0.1, 1.0)
  def test_others_lie_around_a_given_first_by_a_share_of_what_random_ones_differ(self, spread):
    given = jax.tree.map(lambda x: 0 * x + 7, toys.linear().init(toys.key(0)))
    first, *others = tree.unstack(initial_models(
        begun_from(toys.linear(), given, spread), toys.key(0), 3))
    jax.tree.map(np.testing.assert_array_equal, first, given)
    one, other = (toys.linear().init(toys.key(k)) for k in (1, 2))
    typical = abs(one['params']['head']['kernel'] - other['params']['head']['kernel']).mean()
    for model in others:
      away = abs(model['params']['head']['kernel'] - 7).mean()
      self.assertBetween(away, 0.4 * spread * typical, 2.5 * spread * typical)


if __name__ == '__main__':
  absltest.main()
