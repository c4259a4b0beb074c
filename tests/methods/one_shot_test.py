"""One-shot merges from the config: which rows, which order of units, which statistics."""

from unittest import mock

from absl.testing import absltest, parameterized
from hmm_jax.methods import one_shot
from hmm_jax.methods.dmm import threshold, ties
import jax
import numpy as np
from reference import toys
from reference.configs import experiment, tiny

from hmm_jax import tree
from hmm_jax.algorithms import dmm
from hmm_jax.merging import task_vectors
from hmm_jax.merging.batch_norm import repair
from hmm_jax.merging.data_free import distill, invert
from hmm_jax.types import InputError


def make(**values):
  return experiment(tiny(**{'algorithm': 'merging', 'partition.kind': 'iid'} | values))


class MergingTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'merging.method': 'tise'}, '^got merging.method=tise; expected average, .*mean ties'),
      ({'merging.method': 'ties', 'merging.settings': ('lambda=1',)},
       '^got merging.settings with lambda for ties; expected density, scope, scale, weights'),
      ({'merging.method': 'ties', 'merging.settings': ('density=3',)}, '^got density=3; expected'),
      ({'merging.method': 'ties', 'merging.settings': ('density',)}, "^got the setting 'density'"),
      ({'partition.validation': 0.0}, '^got merging.rows=validation, of which client 0 has none'),
  )
  def test_refuses(self, values, message):
    with self.assertRaisesRegex(InputError, message):
      make(**values)

  def test_refuses_statistics_of_units_that_have_moved(self):
    values = {'merging.method': 'weight_matching', 'model': 'resnet', 'synthetic.rows': 200}
    with self.assertRaisesRegex(InputError, 'statistics=pooled; expected recalibrated, for its un'):
      make(**values)
    make(**values, **{'merging.statistics': 'recalibrated'})
    make(**{'merging.method': 'weight_matching'})

  @parameterized.parameters('average', 'ties', 'regmean')
  def test_finishes_with_a_model_of_the_network(self, method):
    made = make(**{'merging.method': method})
    algorithm, federation = made.algorithm, made.federation
    state = jax.eval_shape(algorithm.init, jax.random.key(0), federation)
    after, _ = jax.eval_shape(algorithm.finish, state, federation, jax.random.key(0))
    self.assertEqual(jax.tree.map(lambda x: (x.shape, x.dtype), after),
                     jax.tree.map(lambda x: (x.shape, x.dtype), state))

  def test_draws_each_clients_own_rows(self):
    clients = toys.federation().clients
    rows = one_shot.drawn(jax.random.key(0), clients, 30, 4)
    self.assertEqual(rows.shape, (5, 30, 4))
    for drawn, own in zip(rows, toys.rows(clients), strict=True):
      self.assertEqual(set(np.ravel(drawn).tolist()), set(own.tolist()))

  @parameterized.parameters(
      ('weights', matching, 'align_by_weights'), ('activations', activations,
                                                  'align_by_activations'))
  def test_brings_units_into_one_order(self, how, module, name):
    made = make(**{'merging.match': how})
    with mock.patch.object(module, name, side_effect=lambda *given: given[1 + (
        how == 'weights')]) as align:
      state = jax.eval_shape(made.algorithm.init, jax.random.key(0), made.federation)
      jax.eval_shape(made.algorithm.finish, state, made.federation, jax.random.key(0))
    self.assertNotEmpty(align.call_args_list)

  @parameterized.parameters(
      ('recalibrated', calibrate, 'recalibrate'), ('repaired', repair, 'repair'))
  def test_mends_the_merged_model(self, how, module, name):
    made = make(**{'merging.statistics': how})
    with mock.patch.object(module, name, wraps=getattr(module, name)) as mend:
      jax.eval_shape(made.algorithm.init, jax.random.key(0), made.federation)
    self.assertNotEmpty(mend.call_args_list)


class DmmTest(parameterized.TestCase):

  def settings(self, **values):
    """Returns what DMM, its inversion and its distillation are made with."""
    with mock.patch.object(dmm, 'dmm', wraps=dmm.dmm) as merge, mock.patch.object(
        invert, 'inversion', wraps=invert.inversion) as search, mock.patch.object(
            distil, 'distillation', wraps=distill.distillation) as lessons:
      make(algorithm='dmm', model='resnet', **{'synthetic.rows': 200} | values)
    given = [made.call_args.kwargs if made.call_args else None for made in (merge, search, lessons)]
    return given

  def test_stages_are_those_of_the_config(self):
    merge, search, lessons = self.settings()
    self.assertIs(merge['buffers'], dmm.pooled)
    self.assertIs(merge['teach'], dmm.divergent)
    self.assertIs(merge['weigh'], distill.by_counts)
    self.assertIsNone(merge['threshold'])
    self.assertEqual((search['steps'], search['lr'], search['terms']),
                     (2000, 0.1, invert.Terms(1.0, 0.0, 0.0, 0.0)))
    self.assertIs(lessons['order'], distill.jointly)
    self.assertEqual((lessons['steps'], lessons['batch'], lessons['temperature'], lessons['keep']),
                     (500, 64, 1.0, 0.0))
    merge, search, lessons = self.settings(**{
        'dmm.buffers': 'core', 'dmm.teachers': 'everybody', 'dmm.words': 'equal',
        'dmm.threshold': '0.25', 'dmm.order': 'in_turn', 'dmm.augment': 'none', 'dmm.keep': 0.5,
        'dmm.temperature': 2.0, 'inversion.labels': 0.1, 'inversion.variation': 0.2,
        'inversion.length': 0.3})
    self.assertIs(merge['buffers'], dmm.of_core)
    self.assertIs(merge['teach'], dmm.everybody)
    self.assertIs(merge['weigh'], distill.equally)
    self.assertEqual(merge['threshold'], 0.25)
    self.assertEqual(search['terms'], invert.Terms(1.0, 0.1, 0.2, 0.3))
    self.assertIs(search['augment'], invert.as_they_are)
    self.assertIs(lessons['order'], distill.in_turn)
    self.assertEqual((lessons['temperature'], lessons['keep']), (2.0, 0.5))

  def test_ties_is_of_the_core(self):
    rng = np.random.default_rng(0)
    draw = lambda *shape: {'params': {'a': rng.normal(size=(*shape, 40)).astype(np.float32)}}
    base, stacked = draw(), draw(3)
    got = ties(np.float32([0.25, 0, 0.75]), stacked, base, toys.key(0))
    core = tree.take(stacked['params'], np.array([0, 2]))
    wanted = task_vectors.ties(weights=(0.25, 0.75))(core, base['params'], toys.key(0))
    np.testing.assert_allclose(got['a'], wanted['a'], rtol=1e-6)
    self.assertFalse(np.allclose(got['a'], tree.mix(np.float32([0.25, 0.75]), core)['a']))

  @parameterized.parameters('noise', 'real', 'none')
  def test_without_inversion(self, inputs):
    merge, search, _ = self.settings(**{'dmm.inputs': inputs})
    self.assertIsNone(search)
    self.assertEqual(merge['inputs'] is None, inputs == 'none')

  @parameterized.parameters('x', '1.5', '-2', 'nan')
  def test_refuses_a_threshold(self, text):
    with self.assertRaisesRegex(InputError, f'^got dmm.threshold={text}; expected mean, or a cosi'):
      threshold(text)

  def test_refuses_a_network_without_normalization(self):
    with self.assertRaisesRegex(InputError, '^got algorithm=dmm with a network without BatchNorm'):
      make(algorithm='dmm', model='mlp')


if __name__ == '__main__':
  absltest.main()
