"""What the server may read, when it falls back, and what its work costs."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import softmax_regression, toys

from hmm_jax import tree
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.client.sampling import central
from hmm_jax.merging import atlas as anchors
from hmm_jax.merging import search
from hmm_jax.server import guided_search, objectives
from hmm_jax.types import Cohort

FEDERATION = toys.hybrid()
SERVER = FEDERATION.server
SLOTS = 4
# The last slot is empty; lengths differ, so that weights are not coefficients.
SCALE = jnp.array([[0.5], [2.0], [1.0], [0.0]])
AVERAGE = jnp.array([[0.4], [0.1], [0.3], [0.0]])
# Held-out rows are not read, but where the search ends is taken.
ALWAYS = guided_search.NEVER._replace(rows=guided_search.HELD_OUT.rows)


def updates():
  rng = np.random.default_rng(2)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(SLOTS, *x.shape)), jnp.float32),
                      toys.start(toys.linear)['params'])


def params(c):
  start = toys.start(toys.linear)['params']
  return anchors.merge(start, c * SCALE, anchors.whole(None, start), updates())


def merge(c):
  return {'params': params(c)}


def guide(*, find=None, surrogate=objectives.labels, **settings):
  values = {'project': anchors.any_weights, 'fallback': guided_search.HELD_OUT,
            'mapper': mappers.one_by_one(), 'steps': 6, 'batch': 4}
  return guided_search.Guide(
      surrogate(toys.linear()), find or search.gradient_search(optax.adam(0.1)),
      **values | settings)


def follow(made, *, server=SERVER, key=0, models=None):
  models = tree.repeat(toys.start(toys.linear), 2) if models is None else models
  return toys.jit(lambda server, key: guided_search.follow(
      made, params, {}, AVERAGE, SCALE, models, server, key))(server, toys.key(key))


def found(*values, judged=None):
  """Returns a search that finds these at its marks, whatever it is given, judged as told."""
  def run(loss, judge, start, batches, key, project):
    del loss, batches, key, project
    c = jnp.stack([jnp.full_like(start, value) for value in values])
    seen = jax.vmap(judge)(c) if judged is None else jnp.array(judged, jnp.float32)
    steps = 2 * (1 + jnp.arange(len(values)))
    return search.Trace(steps, c, jnp.zeros(len(values)), seen)

  return search.Search(run, gradients=0, forwards=0)


def held_out_loss(c, server=SERVER):
  rows = np.asarray(server.held_out)
  x, y = np.asarray(server.examples.x, np.float64)[rows], np.asarray(server.examples.y)[rows]
  return softmax_regression.losses(toys.twin(merge(c)), x, y).mean()


class FallbackTest(parameterized.TestCase):

  def test_the_held_out_loss_is_never_above_the_averages(self):
    made = guide(find=search.gradient_search(optax.sgd(0.05)), steps=2, batch=1)
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
    c, metrics, _ = follow(guide(find=found(1.0, 2.0, judged=[judged, judged])))
    self.assertEqual(metrics['server/fallback'], 1)
    np.testing.assert_array_equal(c, AVERAGE)

  @parameterized.parameters(
      ([-2, -1, -3], 3.0, -3), ([-2, -4, -3], 2.0, -4), ([np.nan, -1, np.inf], 2.0, -1),
      ([-3, np.nan, np.nan], 1.0, -3))
  def test_the_best_mark_is_taken(self, judged, taken, loss):
    c, metrics, records = follow(guide(find=found(1.0, 2.0, 3.0, judged=judged)))
    np.testing.assert_array_equal(c, jnp.full_like(c, taken))
    self.assertEqual((metrics['server/fallback'], metrics['server/found_loss']), (0, loss))
    np.testing.assert_array_equal(
        records['search']['held_out_loss'][1:], np.array(judged, np.float32))

  def test_what_is_equal_is_not_taken(self):
    first = float(follow(guide(find=found(1.0)))[1]['server/average_loss'])
    c, metrics, _ = follow(guide(find=found(1.0, judged=[first])))
    self.assertEqual(metrics['server/fallback'], 1)
    np.testing.assert_array_equal(c, AVERAGE)

  @parameterized.parameters(100.0, np.nan, -1.0)
  def test_never_takes_where_the_search_ends(self, judged):
    made = guide(find=found(5.0, 7.0, judged=[-9, judged]), fallback=guided_search.NEVER)
    c, metrics, _ = follow(made)
    np.testing.assert_array_equal(c, jnp.full_like(c, 7))
    self.assertEqual(metrics['server/fallback'], 0)
    np.testing.assert_array_equal(metrics['server/found_loss'], np.float32(judged))


class RowsTest(parameterized.TestCase):

  def given(self, fallback, **settings):
    """Returns the batches that a search is given."""
    given = []
    def run(loss, judge, start, batches, key, project):
      given.append((batches, key))
      return found(0.0).run(loss, judge, start, batches, key, project)
    guided_search.follow(guide(find=search.Search(run, 0, 0), fallback=fallback, **settings), params,
                    {}, AVERAGE, SCALE, None, SERVER, toys.key(0))
    return given[0]

  @parameterized.parameters(guided_search.HELD_OUT, guided_search.NEVER)
  def test_which_rows_a_search_may_read(self, *fallback):
    fallback = guided_search.Fallback(*fallback)
    allowed = SERVER.search if fallback == guided_search.HELD_OUT else jnp.arange(13)
    batches, search_key = self.given(fallback, steps=7, batch=4)
    batch_key, wanted = jax.random.split(toys.key(0))
    np.testing.assert_array_equal(
        batches, search.minibatches(batch_key, allowed, batch=4, steps=7))
    self.assertEqual(set(np.ravel(batches).tolist()), set(np.asarray(allowed).tolist()))
    self.assertEqual(search_key, wanted)

  @parameterized.parameters(
      ('gradient', 'labels', True), ('gradient', 'labels', False), ('gradient', 'head', True),
      ('evolution', 'labels', True), ('evolution', 'head', False))
  def test_held_out_labels_do_not_reach_a_search(self, find, surrogate, fallback):
    finds = {'gradient': search.gradient_search(optax.adam(0.1)),
             'evolution': search.evolution_search(sigma=0.2)}
    teach = {'labels': objectives.labels, 'head': lambda net: objectives.fresh_head(net, 3)}
    made = guide(find=finds[find], surrogate=teach[surrogate],
                 fallback=ALWAYS if fallback else guided_search.NEVER)
    y = SERVER.examples.y.at[SERVER.held_out].set((SERVER.examples.y[SERVER.held_out] + 1) % 3)
    other = SERVER._replace(examples=SERVER.examples._replace(y=y))
    # A head is all that a linear model has: its search stands still, but not that of labels.
    (c, _, records), (changed, _, others) = (follow(made, server=s) for s in (SERVER, other))
    trace, far = (r['search']['loss'][1:] for r in (records, others))
    if fallback:
      toys.assert_close((changed, far), (c, trace), rtol=0, atol=0)
      toys.assert_far(others['search']['held_out_loss'], records['search']['held_out_loss'])
    else:
      toys.assert_far((changed, far), (c, trace))

  def test_judges_by_the_held_out_rows(self):
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
    _, metrics, _ = follow(guide(surrogate=objectives.distil), models=models)
    x, _ = toys.central(FEDERATION, np.asarray(SERVER.held_out))
    mean = np.mean([softmax_regression.logits(toys.twin(m), x) for m in tree.unstack(models)],
                   axis=0)
    q = np.exp(mean) / np.exp(mean).sum(axis=1, keepdims=True)
    p = softmax_regression.probabilities(toys.twin(merge(AVERAGE)), x)
    np.testing.assert_allclose(
        metrics['server/average_loss'], (q * np.log(q / p)).sum(axis=1).mean(), rtol=1e-4)

  def test_the_context_is_that_of_the_average_and_stays(self):
    seen = []
    def surrogate(net):
      plain = objectives.labels(net)
      def context(variables, examples):
        seen.append((variables, examples))
        return jnp.float32(2)
      def rows(variables, x, y, context, **mode):
        values, variables = plain.rows(variables, x, y, (), **mode)
        return context * values, variables
      return plain._replace(context=context, rows=rows)

    _, metrics, _ = guided_search.follow(guide(surrogate=surrogate), params, {}, AVERAGE, SCALE,
                                    None, SERVER, toys.key(0))
    [(variables, examples)] = seen
    toys.assert_close(variables, merge(AVERAGE))
    np.testing.assert_array_equal(examples.y, SERVER.examples.y[SERVER.search])
    np.testing.assert_array_equal(examples.x, SERVER.examples.x[SERVER.search])
    np.testing.assert_allclose(
        metrics['server/average_loss'], 2 * held_out_loss(AVERAGE), rtol=1e-5)


class ConstraintTest(parameterized.TestCase):

  @parameterized.product(find=['gradient', 'evolution'], kind=['convex', 'box'])
  def test_holds_for_the_weights_of_usable_anchors(self, find, kind):
    finds = {'gradient': search.gradient_search(optax.sgd(3.0)),
             'evolution': search.evolution_search(sigma=0.5)}
    project = {'convex': anchors.convex, 'box': anchors.boxed(0.3)}[kind]
    for key in range(3):
      c, _, _ = follow(guide(find=finds[find], project=project, fallback=guided_search.NEVER), key=key)
      weights = np.asarray(c * SCALE)[:3]
      self.assertGreaterEqual(weights.min(), -1e-6)
      if kind == 'box':
        self.assertLessEqual(weights.max(), 0.3 + 1e-6)
      else:
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
      self.assertGreater(np.abs(weights - np.ravel(AVERAGE * SCALE)[:3]).max(), 0.05)

  @parameterized.parameters('gradient', 'evolution')
  def test_what_cannot_be_used_has_no_coefficient(self, find):
    finds = {'gradient': search.gradient_search(optax.adam(0.1)),
             'evolution': search.evolution_search(sigma=0.5)}
    for project in (anchors.any_weights, anchors.convex, anchors.boxed(1.0)):
      c, _, _ = follow(guide(find=finds[find], project=project, fallback=guided_search.NEVER))
      self.assertEqual(float(c[3, 0]), 0)
      toys.assert_far(c[:3], AVERAGE[:3], least=0.02)


class CostTest(parameterized.TestCase):

  @parameterized.parameters(
      # steps, batch, fallback: marks and rows of a batch.
      (6, 4, guided_search.HELD_OUT, 3, 4), (7, 99, guided_search.HELD_OUT, 1, 9),
      (5, 99, guided_search.NEVER, 5, 13))
  def test_of_a_search(self, steps, batch, fallback, marks, width):
    settings = {'steps': steps, 'batch': batch, 'fallback': fallback}
    judged = 4 * (marks + 1)
    metrics = follow(guide(**settings))[1]
    self.assertEqual((metrics['server/gradients'], metrics['server/forwards']), (steps, judged))
    evolution = search.evolution_search(sigma=0.1, population=8)
    metrics = follow(guide(find=evolution, **settings))[1]
    self.assertEqual((metrics['server/gradients'], metrics['server/forwards']),
                     (0, judged + 8 * steps * width))
    self.assertEqual({value.dtype for value in metrics.values()}, {np.dtype('float32')})


class ServerTrainingTest(parameterized.TestCase):

  def test_trains_on_all_of_its_rows(self):
    surrogate = objectives.labels(toys.norm())
    local = local_training(objectives.training_loss(surrogate), optax.sgd(0.3), batch=4, steps=7)
    train = toys.jit(guided_search.server_training(surrogate, local))
    got, cohort, metrics = train(toys.start(toys.norm), (), SERVER, toys.key(1))
    plain = local_training(losses.cross_entropy(toys.norm()), optax.sgd(0.3), batch=4, steps=7)
    wanted, _, report = toys.jit(plain)(
        toys.start(toys.norm), SERVER.examples, central(SERVER), (), toys.key(1))
    toys.assert_close(got, wanted)
    self.assertEqual([leaf.shape for leaf in cohort], [(1,)] * 5)
    self.assertEqual((cohort.id[0], cohort.size[0], cohort.steps[0]), (-1, 13, 7))
    toys.assert_close(metrics['server/loss'], report.loss)
    self.assertEqual((metrics['server/gradients'], metrics['server/forwards']), (7, 0))
    self.assertEqual(metrics['server/gradients'].dtype, np.dtype('float32'))

  def test_every_row_counts(self):
    surrogate = objectives.labels(toys.linear())
    local = local_training(objectives.training_loss(surrogate), optax.sgd(0.3), batch=99, epochs=1)
    train = toys.jit(guided_search.server_training(surrogate, local))
    plain, *_ = train(toys.start(toys.linear), (), SERVER, toys.key(1))
    for row in range(13):
      y = SERVER.examples.y.at[row].set((SERVER.examples.y[row] + 1) % 3)
      changed, *_ = train(toys.start(toys.linear), (), SERVER._replace(
          examples=SERVER.examples._replace(y=y)), toys.key(1))
      toys.assert_far(changed, plain)

  def test_the_surrogate_gets_the_models_and_the_start(self):
    surrogate = objectives.labels(toys.linear())._replace(
        targets=lambda models, examples: examples._replace(y=models),
        context=lambda variables, examples: (variables, examples.y))

    def local(start, examples, client, extra, key):
      del key
      report = Cohort(client.id, jnp.float32(1), jnp.bool_(True), client.size, jnp.int32(5))
      return (start, examples, extra), (), report

    (start, examples, extra), cohort, metrics = guided_search.server_training(surrogate, local)(
        'start', 'models', SERVER, toys.key(0))
    self.assertEqual((start, examples.y, extra), ('start', 'models', ('start', 'models')))
    self.assertEqual((cohort.steps.tolist(), metrics['server/gradients']), ([5], 5))

  @parameterized.parameters(1, 4, 13, 99)
  def test_the_gradient_is_that_of_all_rows(self, batch):
    surrogate = objectives.labels(toys.linear())
    gradient, count = guided_search.server_gradient(surrogate, batch=batch)(
        toys.start(toys.linear), SERVER, toys.key(0))
    wanted = softmax_regression.gradient(
        toys.twin(toys.start(toys.linear)), *toys.central(FEDERATION))
    toys.assert_close(gradient['head'], wanted, rtol=1e-4, atol=1e-6)
    self.assertEqual(count, -(-13 // batch))

  def test_the_gradient_of_a_fresh_head_is_at_the_models_own(self):
    surrogate = objectives.fresh_head(toys.perceptron(), 3)
    start = toys.start(toys.perceptron)
    gradient, _ = toys.jit(guided_search.server_gradient(surrogate, batch=5))(
        start, SERVER, toys.key(0))
    head = toys.jit(surrogate.context)(start, SERVER.examples)
    wanted = toys.jit(jax.grad(lambda params: surrogate.rows(
        {'params': params}, *SERVER.examples, head)[0].mean()))(start['params'])
    toys.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
    toys.assert_far(gradient, tree.zeros(gradient))


if __name__ == '__main__':
  absltest.main()
