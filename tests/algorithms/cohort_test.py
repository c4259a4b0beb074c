"""Every method takes a cohort, or says that it takes all clients; a round costs what it costs."""

from absl.testing import absltest, parameterized
import jax
import pytest
from reference import toys
from reference.configs import experiment, tiny

from hmm_jax import tree
from hmm_jax.algorithms import METHODS
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client import mappers
from hmm_jax.data.sources.builtin import synthetic
from hmm_jax.experiment import build
from hmm_jax.experiment import config as configs
from hmm_jax.experiment import federation as federations
from hmm_jax.experiment.trainer import Trainer

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


# Methods that keep a model, or much of one, of every client.
STATEFUL = ('apfl', 'ditto', 'fedper', 'fedrep', 'local', 'moon', 'pfedme', 'scaffold')


@pytest.mark.slow
class CostTest(parameterized.TestCase):

  @parameterized.named_parameters(*((name, name) for name in STATEFUL))
  def test_a_round_makes_no_copy_of_what_all_clients_keep(self, name):
    shape = (8, 8, 1)
    config = configs.configure({
        'algorithm': name, 'dataset': 'synthetic', 'synthetic.shape': shape, 'clients': 200,
        'participation': 2, 'partition.kind': 'iid', 'partition.validation': 0.2,
        'partition.test': 0.2, 'local.batch': 2, 'rounds': 2, 'eval_every': 2, 'seeds': 1,
        'mapper': 'map', 'model': 'mlp', 'mlp.hidden': (128,)})
    data = synthetic(rows=1200, classes=10, shape=shape, seed=0)
    trainer = Trainer(build.experiment(config, data, federations.federation(config, data)))
    stacks = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(trainer.shapes))
    self.assertGreater(tree.nbytes(trainer.shapes), 200 * 1000)  # They are most of the state.
    self.assertLess(trainer.compile().memory_analysis().temp_size_in_bytes, stacks)


if __name__ == '__main__':
  absltest.main()
