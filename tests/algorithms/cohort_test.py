"""Every method takes a cohort, or says that it takes all clients."""

from absl.testing import absltest, parameterized
import jax
from reference import toys
from reference.configs import experiment, tiny

from hmm_jax.algorithms import METHODS
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers
from hmm_jax.experiment import config as configs

FEDERATION = toys.hybrid()
ALONE = ('centralized', 'server_only')  # All rows, or none, are one client's.


class CohortTest(parameterized.TestCase):

  @parameterized.named_parameters(*((name, name) for name in METHODS))
  def test_takes_a_cohort_or_all_clients(self, name):
    config, method = tiny(
        algorithm=name, model='resnet', **{'merging.rows': 'train'}), METHODS[name]
    algorithm = method.build(
        Parts(config, toys.norm(), mappers.one_by_one(), FEDERATION),
        configs.section(config, method))
    _, metrics = jax.eval_shape(
        lambda key, data: algorithm.round(algorithm.init(key, data), data, key),
        toys.key(0), FEDERATION)
    count = 1 if name in ALONE else 5 if 'all clients' in method.needs else 3
    self.assertEqual(metrics['cohort'].id.shape, (count,))

  def test_who_asks_nobody_may_be_told_of_more_clients_than_there_are(self):
    experiment(tiny(algorithm='server_only', participation=7))


if __name__ == '__main__':
  absltest.main()
