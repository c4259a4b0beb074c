"""DMM's stages: who is merged, whose buffers, who teaches what."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import toys

from hmm_jax import tree
from hmm_jax.algorithms import dmm
from hmm_jax.client import sampling
from hmm_jax.merging import ties
from hmm_jax.merging.data_free import distill, invert
from hmm_jax.types import InputError

FEDERATION = toys.federation()
K = len(toys.SIZES)
SIZES = np.array(toys.SIZES, np.float64)
# Clients 1, 3 and 4 have learned alike, 0 and 2 something else each.
CORE = np.array([False, True, False, True, True])
COUNTS = np.array([[3, 0, 0], [0, 2, 0], [0, 1, 4]], np.float32)


@cache
def models():
  """Returns the start, and K models whose updates and statistics are planted."""
  base = toys.start(toys.norm)
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
  directions = [jax.tree.map(draw, base['params']) for _ in range(3)]
  chosen = [directions[n] for n in (1, 0, 2, 0, 0)]
  noisy = [jax.tree.map(lambda x: x + 0.1 * draw(x), one) for one in chosen]
  params = [tree.add(base['params'], update) for update in noisy]
  statistics = [jax.tree.map(lambda x: 3 * np.abs(draw(x)), base['batch_stats']) for _ in params]
  return base, tree.stack([{'params': p, 'batch_stats': s}
                           for p, s in zip(params, statistics, strict=True)])


def mean(weights, stacked, base, key):
  del base, key
  return tree.mix(weights, stacked['params'])


def made(**changed):
  settings = dict(
      align=lambda core, stacked, key: stacked, combine=mean, buffers=dmm.pooled, inputs=None,
      teach=dmm.divergent, weigh=distill.by_counts, distillation=None,
      settle=lambda variables, x: variables) | changed
  return dmm.dmm(toys.norm(), **settings)


@cache
def program(**changed):
  """Returns a compiled merge, whose last argument is the threshold."""
  return toys.jit(lambda *given: made(**changed, threshold=given[-1])(*given[:-1]))


def merge(threshold=None, **changed):
  return program(**changed)(*models(), FEDERATION, toys.key(0), threshold)


def noise(merged, stacked, federation, key):
  del merged, stacked, federation
  return jax.random.normal(key, (40, 4)), {'noise/rows': jnp.float32(40)}


@cache
def distillation(steps=30):
  return distill.distillation(
      toys.norm(), optax.adam(0.05), order=distill.jointly, steps=steps, batch=20,
      temperature=1.0, keep=0.0, augment=invert.as_they_are, each=toys.lifts()['map'].each)


class MergeTest(parameterized.TestCase):

  def test_the_core_is_merged_by_rows(self):
    merged, facts = merge()
    weights = np.float32(CORE * SIZES / (CORE * SIZES).sum())
    toys.assert_close(merged['params'], tree.mix(weights, models()[1]['params']))
    self.assertEqual(facts['dmm/core'], 3)
    self.assertBetween(facts['dmm/similarity'], 0.1, 0.6)

  def test_buffers_are_pooled_over_all_models(self):
    merged, _ = merge()
    norm = merged['batch_stats']['trunk']['BatchNorm_0']
    own = models()[1]['batch_stats']['trunk']['BatchNorm_0']
    own = jax.tree.map(np.asarray, own)
    share = (SIZES / SIZES.sum())[:, None]
    wanted = (share * own['mean']).sum(axis=0)
    np.testing.assert_allclose(norm['mean'], wanted, rtol=1e-5)
    np.testing.assert_allclose(
        norm['var'], (share * (own['var'] + (own['mean'] - wanted)**2)).sum(axis=0), rtol=1e-5)

  def test_buffers_of_the_core(self):
    merged, _ = merge(buffers=dmm.of_core)
    weights = np.float32(CORE * SIZES / (CORE * SIZES).sum())
    toys.assert_close(merged['batch_stats'], tree.mix(weights, models()[1]['batch_stats']))

  @parameterized.parameters((-1.0, K), (1.0, K), (0.8, 3))
  def test_threshold(self, threshold, count):
    # Of a pair that nobody reaches, all are the core.
    self.assertEqual(merge(threshold=threshold)[1]['dmm/core'], count)

  def test_clients_without_rows_in_the_core_count_the_same(self):
    empty = FEDERATION._replace(clients=FEDERATION.clients._replace(
        size=np.where(CORE, 0, FEDERATION.clients.size)))
    base, stacked = models()
    merged, _ = toys.jit(made())(base, stacked, empty, toys.key(0))
    toys.assert_close(merged['params'], tree.mix(np.float32(CORE / 3), stacked['params']))

  def test_models_are_aligned_to_the_core_before_they_are_merged(self):
    def turn(core, stacked, key):
      del key
      return jax.tree.map(lambda x: jnp.where(
          core.reshape(-1, *[1] * (x.ndim - 1)), 2 * x, x), stacked)

    merged, _ = merge(align=turn, buffers=dmm.of_core)
    plain, _ = merge(buffers=dmm.of_core)
    toys.assert_close(merged, tree.scale(2, plain))

  def test_refuses_a_network_without_normalization(self):
    with self.assertRaisesRegex(InputError, 'algorithm=dmm'):
      dmm.dmm(toys.linear(), align=None, combine=None, buffers=None, inputs=None, teach=None,
              weigh=None, distillation=None, settle=None)


def settle(variables, x):
  """Marks the statistics that a student settles on."""
  return {**variables, 'batch_stats': {'of': x.mean(axis=0), 'before': variables['batch_stats']}}


def distilled(threshold):
  return merge(threshold, inputs=noise, distillation=distillation(), settle=settle)


class DistillTest(parameterized.TestCase):

  def test_reports_the_first_loss_and_the_last(self):
    lessons = lambda student, teachers, weights, x, key: (student, jnp.array([5., 1., 2., 3.]))
    _, facts = merge(inputs=noise, distillation=lessons)
    self.assertEqual((facts['distil/first_loss'], facts['distil/last_loss']), (5, 3))

  def test_who_speaks_for_which_rows(self):
    core = np.array([False, True, True])
    np.testing.assert_array_equal(
        dmm.divergent(core, COUNTS), [[3, 0, 0], [0, 0, 0], [0, 0, 0], [0, 3, 4]])
    np.testing.assert_array_equal(dmm.all_models(core, COUNTS), [*COUNTS, [0, 0, 0]])
    with self.subTest('where all agree, or the others have no rows, nobody teaches'):
      self.assertFalse(dmm.divergent(np.full(3, True), COUNTS).any())
      self.assertFalse(dmm.divergent(core, COUNTS * core[:, None]).any())

  def test_the_student_is_the_distilled_merge(self):
    merged, _ = merge(0.8)
    student, facts = distilled(0.8)
    toys.assert_close(student['batch_stats']['before'], merged['batch_stats'])
    toys.assert_far(student['params'], merged['params'])
    self.assertLess(facts['distil/last_loss'], facts['distil/first_loss'])
    self.assertEqual(facts['noise/rows'], 40)

  def test_settles_on_what_it_was_distilled_on(self):
    x, _ = noise((), (), (), jax.random.split(toys.key(0), 4)[2])
    toys.assert_close(distilled(0.8)[0]['batch_stats']['of'], x.mean(axis=0), atol=1e-5)

  def test_where_all_agree_the_student_is_the_merge(self):
    merged, facts = merge(-1.0)
    self.assertEqual(facts['dmm/core'], K)
    student, facts = distilled(-1.0)
    toys.assert_close(student['params'], merged['params'], rtol=0, atol=0)
    toys.assert_close(student['batch_stats']['before'], merged['batch_stats'], rtol=0, atol=0)
    self.assertEqual((facts['distil/first_loss'], facts['distil/last_loss']), (0, 0))

  def test_teachers_are_all_models_and_the_merge(self):
    def look(student, teachers, weights, x, key):
      del key
      seen.update(student=student, teachers=teachers, weights=weights, rows=len(x))
      return student, jnp.zeros(1)

    (base, stacked), seen = models(), {}
    merged, seen = toys.jit(lambda *given: (
        made(inputs=noise, distillation=look)(*given)[0], {**seen}))(
            base, stacked, FEDERATION, toys.key(0))
    toys.assert_close(seen['student'], merged)
    order = np.argsort(FEDERATION.clients.id)
    toys.assert_close(tree.take(seen['teachers'], slice(K)), tree.take(stacked, order))
    toys.assert_close(tree.take(seen['teachers'], K), merged)
    counts = sampling.label_counts(FEDERATION.clients, FEDERATION.examples.y, toys.CLASSES)
    toys.assert_close(
        seen['weights'], distill.by_counts(dmm.divergent(CORE[order], counts[order])))
    self.assertEqual(seen['rows'], 40)


class ConfigTest(parameterized.TestCase):

  @parameterized.parameters(('mean', None), ('0.25', 0.25), ('-1', -1.0))
  def test_reads_a_threshold(self, text, wanted):
    self.assertEqual(dmm.threshold(text), wanted)

  @parameterized.parameters('x', '1.5', '-2', 'nan')
  def test_refuses_a_threshold(self, text):
    with self.assertRaisesRegex(InputError, f'got threshold={text}'):
      dmm.threshold(text)

  def test_ties_is_of_the_core(self):
    rng = np.random.default_rng(0)
    draw = lambda *shape: {'params': {'a': rng.normal(size=(*shape, 40)).astype(np.float32)}}
    base, stacked = draw(), draw(3)
    got = dmm.ties_of_core(0.2)(np.float32([0.25, 0, 0.75]), stacked, base, toys.key(0))
    core = tree.take(stacked['params'], np.array([0, 2]))
    wanted = ties.merge(core, base['params'], toys.key(0), weights=np.float32([0.25, 0.75]),
                        density=0.2)
    np.testing.assert_allclose(got['a'], wanted['a'], rtol=1e-6)
    self.assertFalse(np.allclose(got['a'], tree.mix(np.float32([0.25, 0.75]), core)['a']))


if __name__ == '__main__':
  absltest.main()
