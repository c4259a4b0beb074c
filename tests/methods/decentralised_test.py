"""Gossip is what the config says."""

from unittest import mock

from absl.testing import absltest, parameterized
from hmm_jax.methods import decentralized
import jax
import numpy as np
from reference import toys
from reference.configs import experiment, tiny

from hmm_jax.decentralized import topology
from hmm_jax.experiment import build


def gossiping(net=toys.linear, *, participation=3, **values):
  """Builds gossip on inputs of toys; values are gossip's unless they have a dot."""
  values = {name if '.' in name else f'gossip.{name}': value for name, value in values.items()}
  config = tiny(algorithm='gossip', participation=participation, **{
      'synthetic.shape': (4,), 'synthetic.classes': 3, 'normalize': 'none', **values})
  with mock.patch.object(build, 'network', return_value=net()):
    made = experiment(config)
  return made.algorithm, made.federation


class GossipTest(parameterized.TestCase):

  @parameterized.parameters(3, 10)
  def test_everybody_takes_part(self, participation):
    algorithm, federation = gossiping(participation=participation)
    state = jax.eval_shape(algorithm.init, jax.random.key(0), federation)
    _, metrics = jax.eval_shape(algorithm.round, state, federation, jax.random.key(0))
    self.assertEqual(metrics['cohort'].id.shape, (6,))

  def test_the_graph_gets_its_settings(self):
    settings = {'weights': 'laplacian', 'degree': 2, 'edge_probability': 0.9}
    with mock.patch.object(topology, 'topology', wraps=topology.topology) as made:
      gossiping(topology='regular', graph_seed=3, final_merge='base:4', **settings)
    self.assertEqual([call.args for call in made.call_args_list], [('regular',), ('base',)])
    for call in made.call_args_list:
      self.assertEqual(call.kwargs, {'agents': 6, 'seed': 3, **settings})

  @parameterized.parameters(('none', None), ('uniform', ('complete', 1)), ('ring:12', ('ring', 12)),
                            ('edges:/a:b:2', ('edges:/a:b', 2)))
  def test_final_merges(self, name, expected):
    self.assertEqual(decentralized.final_merge(name, lambda graph: graph), expected)
    if expected is None:
      self.assertIsNone(gossiping(final_merge=name)[0].finish)

  def test_says_what_the_graph_promises(self):
    algorithm, _ = gossiping(topology='ring', rate=0.5)
    facts = dict(algorithm.facts)
    self.assertEqual(facts['topology'], 'ring at rate 0.5')
    self.assertEqual(facts['models an agent sends a round'], '1')

  def test_the_schedule_has_its_rate_and_the_rounds(self):
    algorithm, _ = gossiping(topology='matching', rate=1.0, schedule='cosine:0:1')
    self.assertEqual(algorithm.length, 2)
    self.assertIsNone(gossiping(schedule='constant:0.5@1:')[0].length)

  def test_starts(self):
    for start, distinct in (('same', 1), ('different', 6)):
      algorithm, federation = gossiping(start=start)
      kernel = algorithm.init(jax.random.key(0), federation).stacked['params']['head']['kernel']
      self.assertLen(np.unique(np.asarray(kernel).reshape(6, -1), axis=0), distinct)

  def test_the_optimizer_is_the_local_one_and_lives_on(self):
    algorithm, federation = gossiping(**{
        'topology': 'matching', 'rate': 0.0, 'local.momentum': 0.5, 'local.lr': 0.1,
        'local.batch': 999, 'local.epochs': 1})
    round_ = toys.jit(algorithm.round)
    states = [toys.jit(algorithm.init)(jax.random.key(0), federation)]
    for r in range(2):
      states.append(round_(states[-1], federation, jax.random.key(r))[0])
    first, second, third = (s.stacked['params']['head']['kernel'] for s in states)
    velocity = states[1].private[0][0].trace['head']['kernel']
    np.testing.assert_allclose(second, first - 0.1 * velocity, rtol=1e-5, atol=1e-6)
    velocity = states[2].private[0][0].trace['head']['kernel']
    np.testing.assert_allclose(third, second - 0.1 * velocity, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(('mixed', 31), ('kept', 23))
  def test_statistics_are_mixed_or_kept(self, statistics, size):
    algorithm, _ = gossiping(toys.norm, statistics=statistics)
    self.assertEqual(algorithm.traffic.up, 4 * size)

  @parameterized.parameters('train', 'validation', None)
  def test_merged_statistics_and_their_data(self, source):
    settings = {'merge_data': source} if source else {'merged_statistics': 'averaged'}
    algorithm, federation = gossiping(
        toys.norm, merge_batches=3, **{'local.batch': 4}, **settings)
    state = toys.jit(algorithm.init)(jax.random.key(0), federation)
    merged = toys.jit(algorithm.views)(state, federation)['merged']
    expected = {'mean': np.zeros(4), 'var': np.ones(4)}
    if source:
      rows = {'train': np.sort(np.concatenate(toys.rows(federation.clients))),
              'validation': np.asarray(federation.validation.rows)}[source]
      draws = rows[np.asarray(jax.random.randint(jax.random.key(0), (3, 4), 0, len(rows)))]
      x = np.asarray(federation.examples.x, np.float64)[draws]
      expected = {'mean': x.mean(axis=1).mean(axis=0), 'var': x.var(axis=1).mean(axis=0)}
    toys.assert_close(merged['batch_stats']['trunk']['BatchNorm_0'], expected)


if __name__ == '__main__':
  absltest.main()
