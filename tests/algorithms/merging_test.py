"""One-shot merging from a config: on which rows, and what comes of it."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
from reference import toys
from reference.configs import experiment, tiny

from hmm_jax.algorithms import merging
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers


def make(**values):
  return experiment(tiny(algorithm='merging', **{'partition.kind': 'iid'} | values))


class MergingTest(parameterized.TestCase):

  @parameterized.named_parameters(*((name, name) for name in (
      'average', 'ties', 'regmean', 'weight_matching')))
  def test_finishes_with_a_model_of_the_network(self, method):
    made = make(**{'merging.method': method})
    algorithm, federation = made.algorithm, made.federation
    state = jax.eval_shape(algorithm.init, jax.random.key(0), federation)
    after, _ = jax.eval_shape(algorithm.finish, state, federation, jax.random.key(0))
    self.assertEqual(jax.tree.map(lambda x: (x.shape, x.dtype), after),
                     jax.tree.map(lambda x: (x.shape, x.dtype), state))

  def test_statistics_of_permuted_units_may_be_recalibrated(self):
    config = tiny(algorithm='merging', **{
        'merging.method': 'weight_matching', 'merging.statistics': 'recalibrated'})
    merging.check_statistics(
        Parts(config, toys.norm(), mappers.one_by_one(), toys.federation()), config.merging)

  def test_draws_each_clients_own_rows(self):
    clients = jax.tree.map(jax.numpy.asarray, toys.federation().clients)
    rows = toys.jit(merging.draw, static_argnums=(2, 3))(toys.key(0), clients, 30, 4)
    self.assertEqual(rows.shape, (5, 30, 4))
    for drawn, own in zip(rows, toys.rows(toys.federation().clients), strict=True):
      self.assertEqual(set(np.ravel(drawn).tolist()), set(own.tolist()))


if __name__ == '__main__':
  absltest.main()
