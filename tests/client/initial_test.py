"""Several models begin apart, and the first where one alone would."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import toys

from hmm_jax import tree
from hmm_jax.client.initial import initial_models


class InitialModelsTest(parameterized.TestCase):

  @parameterized.parameters(1, 3)
  def test_the_first_is_that_of_one_alone_and_all_differ(self, count):
    models = tree.unstack(initial_models(toys.linear(), toys.key(0), count))
    self.assertLen(models, count)
    jax.tree.map(np.testing.assert_array_equal, models[0], toys.linear().init(toys.key(0)))
    for k, model in enumerate(models):
      for other in models[:k]:
        toys.assert_far(model, other, least=0.01)


if __name__ == '__main__':
  absltest.main()
