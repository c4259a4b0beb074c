"""What a search may read, when it falls back, and what it costs."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import softmax_regression, toys

from hmm_jax import tree
from hmm_jax.client import mappers
from hmm_jax.merging import atlas as anchors
from hmm_jax.merging import search
from hmm_jax.server import guided_search, objectives
from hmm_jax.types import Search, Trace

FEDERATION = toys.hybrid()
SERVER = FEDERATION.server
SLOTS = 4
# The last slot is empty; lengths differ, so that weights are not coefficients.
SCALE = jnp.array([[0.5], [2.0], [1.0], [0.0]])
AVERAGE = jnp.array([[0.4], [0.1], [0.3], [0.0]])
# Held-out rows are not read, but where the search ends is taken.
ALWAYS = guided_search.NEVER._replace(rows=guided_search.HELD_OUT.rows)


START = toys.start(toys.linear)['params']


@cache
def updates():
  rng = np.random.default_rng(2)
  return jax.tree.map(lambda x: rng.normal(size=(SLOTS, *x.shape)).astype(np.float32), START)


def params(c):
  return anchors.merge(START, c * SCALE, anchors.whole(None, START), updates())


def merge(c):
  return {'params': params(c)}


FINDS = {'gradient': lambda: search.gradient_search(optax.adam(0.1)),
         'steep': lambda: search.gradient_search(optax.sgd(3.0)),
         'evolution': lambda: search.evolution_search(sigma=0.5, population=8)}
OBJECTIVES = {'labels': objectives.labels, 'distill': objectives.distill}
ALL = np.arange(13)


@cache
def guide(find='gradient', objective='labels', *, project=anchors.any_weights,
          fallback=guided_search.HELD_OUT, steps=6, batch=4):
  return guided_search.Guide(
      OBJECTIVES[objective](toys.linear()), FINDS[find](), project, fallback,
      mappers.one_by_one(), steps, batch)


@cache
def program(made):
  return toys.jit(lambda server, models, key: guided_search.follow(
      made, params, {}, AVERAGE, SCALE, models, server, key))


def follow(made, *, server=SERVER, key=0, models=None):
  models = tree.repeat(toys.start(toys.linear), 2) if models is None else models
  return program(made)(server, models, toys.key(key))


@cache
def told(fallback):
  """Returns a compiled `follow` of a search that finds 1, 2 and 3, evaluated as it is told."""
  def run(judged):
    def find(loss, evaluate, start, batches, key, project):
      del loss, evaluate, batches, key, project
      c = jnp.stack([jnp.full_like(start, value) for value in (1, 2, 3)])
      return Trace(2 * (1 + jnp.arange(3)), c, jnp.zeros(3), judged)

    made = guide(fallback=fallback)._replace(search=Search(find, gradients=0, forwards=0))
    return guided_search.follow(
        made, params, {}, AVERAGE, SCALE, None, SERVER, toys.key(0))

  program = toys.jit(run)
  return lambda *judged: program(np.float32(judged))


def held_out_loss(c, server=SERVER):
  rows = np.asarray(server.held_out)
  x, y = np.asarray(server.examples.x, np.float64)[rows], np.asarray(server.examples.y)[rows]
  return softmax_regression.losses(toys.twin(merge(c)), x, y).mean()


class FallbackTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_the_held_out_loss_is_never_above_the_averages(self):
    made = guide(steps=2, batch=1)._replace(search=search.gradient_search(optax.sgd(0.05)))
    outcomes = toys.jit(jax.vmap(lambda key: guided_search.follow(
        made, params, {}, AVERAGE, SCALE, None, SERVER, key)))(jax.random.split(toys.key(0), 60))
    c, metrics, records = outcomes
    average = held_out_loss(AVERAGE)
    fell = 0
    for one, was, last in zip(c, metrics['server/fallback'],
                              records['search']['held_out_loss'][:, 1:].min(axis=1), strict=True):
      self.assertLessEqual(held_out_loss(one), average + 1e-6)
      self.assertEqual(was, last >= np.float32(average))
      self.assertEqual(bool((one == AVERAGE).all()), bool(was))
      fell += was
    # Both are seen.
    self.assertGreater(fell, 5)
    self.assertLess(fell, 55)

  @parameterized.parameters(np.nan, np.inf, 100.0)
  def test_what_is_not_lower_or_not_a_number_is_not_taken(self, judged):
    c, metrics, _ = told(guided_search.HELD_OUT)(judged, judged, judged)
    self.assertEqual(metrics['server/fallback'], 1)
    np.testing.assert_array_equal(c, AVERAGE)

  @parameterized.parameters(
      ([-2, -1, -3], 3.0, -3), ([-2, -4, -3], 2.0, -4), ([np.nan, -1, np.inf], 2.0, -1),
      ([-3, np.nan, np.nan], 1.0, -3))
  def test_the_best_checkpoint_is_taken(self, judged, taken, loss):
    c, metrics, records = told(guided_search.HELD_OUT)(*judged)
    np.testing.assert_array_equal(c, jnp.full_like(c, taken))
    self.assertEqual((metrics['server/fallback'], metrics['server/found_loss']), (0, loss))
    np.testing.assert_array_equal(
        records['search']['held_out_loss'][1:], np.array(judged, np.float32))

  def test_what_is_equal_is_not_taken(self):
    first = float(told(guided_search.HELD_OUT)(0, 0, 0)[1]['server/average_loss'])
    c, metrics, _ = told(guided_search.HELD_OUT)(first, first, first)
    self.assertEqual(metrics['server/fallback'], 1)
    np.testing.assert_array_equal(c, AVERAGE)

  @parameterized.parameters(100.0, np.nan, -1.0)
  def test_never_takes_where_the_search_ends(self, judged):
    c, metrics, _ = told(guided_search.NEVER)(-9, -9, judged)
    np.testing.assert_array_equal(c, jnp.full_like(c, 3))
    self.assertEqual(metrics['server/fallback'], 0)
    np.testing.assert_array_equal(metrics['server/found_loss'], np.float32(judged))


class RowsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('held_out', guided_search.HELD_OUT, SERVER.search), ('never', guided_search.NEVER, ALL))
  def test_which_rows_a_search_may_read(self, fallback, allowed):
    given = []

    def run(loss, evaluate, start, batches, key, project):
      given.append((batches, jax.random.key_data(key)))
      return Trace(jnp.array([1]), start[None], jnp.zeros(1), jnp.zeros(1))

    made = guide(fallback=fallback, steps=7)._replace(search=Search(run, 0, 0))
    batches, search_key = toys.jit(lambda key: (guided_search.follow(
        made, params, {}, AVERAGE, SCALE, None, SERVER, key), given[0])[1])(toys.key(0))
    batch_key, wanted = jax.random.split(toys.key(0))
    np.testing.assert_array_equal(
        batches, search.minibatches(batch_key, jnp.asarray(allowed), batch=4, steps=7))
    self.assertEqual(set(np.ravel(batches).tolist()), set(np.asarray(allowed).tolist()))
    np.testing.assert_array_equal(search_key, jax.random.key_data(wanted))

  @parameterized.named_parameters(
      ('gradient', 'gradient', 'labels', True), ('evolution', 'evolution', 'labels', True),
      ('with_all_rows', 'gradient', 'labels', False))
  def test_held_out_labels_do_not_reach_a_search(self, find, objective, held_out):
    made = guide(find, objective, fallback=ALWAYS) if held_out else guide(
        find, objective, fallback=guided_search.NEVER, steps=5, batch=99)
    y = SERVER.examples.y.at[SERVER.held_out].set((SERVER.examples.y[SERVER.held_out] + 1) % 3)
    other = SERVER._replace(examples=SERVER.examples._replace(y=y))
    (c, _, records), (changed, _, others) = (follow(made, server=s) for s in (SERVER, other))
    trace, far = (r['search']['loss'][1:] for r in (records, others))
    if held_out:
      toys.assert_close((changed, far), (c, trace), rtol=0, atol=0)
      toys.assert_far(others['search']['held_out_loss'], records['search']['held_out_loss'])
    else:
      toys.assert_far((changed, far), (c, trace))

  def test_evaluates_on_the_held_out_rows(self):
    c, metrics, records = follow(guide(fallback=ALWAYS))
    np.testing.assert_allclose(metrics['server/average_loss'], held_out_loss(AVERAGE), rtol=1e-5)
    np.testing.assert_allclose(metrics['server/found_loss'], held_out_loss(c), rtol=1e-5)
    table = records['search']
    self.assertEqual(table['step'].tolist(), [0, 2, 4, 6])
    np.testing.assert_allclose(
        table['held_out_loss'][jnp.array([0, -1])],
        [held_out_loss(AVERAGE), held_out_loss(c)], rtol=1e-5)
    self.assertEqual(np.isnan(table['loss']).tolist(), [True, False, False, False])
    toys.assert_far(c, AVERAGE, least=0.05)

  def test_a_teacher_is_made_of_the_clients_models(self):
    rng = np.random.default_rng(5)
    models = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(2, *x.shape)), jnp.float32),
                          toys.start(toys.linear))
    _, metrics, _ = follow(guide(objective='distill'), models=models)
    x, _ = toys.central(FEDERATION, np.asarray(SERVER.held_out))
    mean = np.mean([softmax_regression.logits(toys.twin(m), x) for m in tree.unstack(models)],
                   axis=0)
    q = np.exp(mean) / np.exp(mean).sum(axis=1, keepdims=True)
    p = softmax_regression.probabilities(toys.twin(merge(AVERAGE)), x)
    np.testing.assert_allclose(
        metrics['server/average_loss'], (q * np.log(q / p)).sum(axis=1).mean(), rtol=1e-4)

  def test_the_context_is_that_of_the_average_and_stays(self):
    seen, plain = [], objectives.labels(toys.linear())

    def context(variables, examples):
      seen.append((variables, examples))
      return jnp.float32(2)

    def rows(variables, x, y, context, **mode):
      values, variables = plain.rows(variables, x, y, (), **mode)
      return context * values, variables

    made = guide()._replace(objective=plain._replace(context=context, rows=rows))
    metrics, (variables, examples) = toys.jit(lambda key: (guided_search.follow(
        made, params, {}, AVERAGE, SCALE, None, SERVER, key)[1], seen[0]))(toys.key(0))
    self.assertLen(seen, 1)
    toys.assert_close(variables, merge(AVERAGE))
    np.testing.assert_array_equal(examples.y, SERVER.examples.y[SERVER.search])
    np.testing.assert_array_equal(examples.x, SERVER.examples.x[SERVER.search])
    np.testing.assert_allclose(
        metrics['server/average_loss'], 2 * held_out_loss(AVERAGE), rtol=1e-5)


class ConstraintTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('box', 'steep', anchors.boxed(0.3)), ('convex', 'evolution', anchors.convex),
      ('none', 'gradient', None))
  def test_holds_for_the_weights_of_usable_anchors(self, find, project):
    made = guide(find, project=project, fallback=guided_search.NEVER) if project else guide(
        fallback=ALWAYS)
    for key in range(3):
      c, _, _ = follow(made, key=key)
      self.assertEqual(float(c[3, 0]), 0)  # It cannot be used.
      toys.assert_far(c[:3], AVERAGE[:3], least=0.02)
      weights = np.asarray(c * SCALE)[:3]
      if project is None:
        continue
      self.assertGreaterEqual(weights.min(), -1e-6)
      if find == 'steep':
        self.assertLessEqual(weights.max(), 0.3 + 1e-6)
      else:
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
      self.assertGreater(np.abs(weights - np.ravel(AVERAGE * SCALE)[:3]).max(), 0.05)


class CostTest(parameterized.TestCase):

  @parameterized.named_parameters(
      # gradients and forwards; of 4 held-out rows: the average, and each mark.
      ('gradient', guide(fallback=ALWAYS), 6, 4 * 4),
      ('of_all_rows', guide(fallback=guided_search.NEVER, steps=5, batch=99), 5, 4 * 6),
      ('evolution', guide('evolution', fallback=ALWAYS), 0, 4 * 4 + 8 * 6 * 4))
  def test_of_a_search(self, made, gradients, forwards):
    metrics = follow(made)[1]
    self.assertEqual(
        (metrics['server/gradients'], metrics['server/forwards']), (gradients, forwards))
    self.assertEqual({value.dtype for value in metrics.values()}, {np.dtype('float32')})


if __name__ == '__main__':
  absltest.main()
