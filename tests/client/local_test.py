"""Tests of one client's training."""

from functools import cache, partial

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import softmax_regression, toys
from reference.fedavg import client_update

from hmm_jax.client import local, losses
from hmm_jax.types import Examples, InputError

LR = 0.3
FEDERATION = toys.federation((7, 3, 0, 4))
SPARE = toys.federation((7, 3, 0, 4), spare=9)
TABLES = toys.tables(FEDERATION)
LOSS = losses.supervised(toys.linear())
OPTIMIZERS = {'sgd': optax.sgd(LR), 'adamw': optax.adamw(LR, weight_decay=0.1)}


def training(loss=LOSS, optimizer='sgd', **settings):
  settings = {'batch': 3, 'epochs': 2} | settings
  return toys.jit(local.local_training(loss, OPTIMIZERS[optimizer], **settings))


@cache
def work(network, optimizer='sgd', **settings):
  """Returns compiled cross-entropy training, by default of 2 epochs in batches of 3."""
  return training(losses.supervised(network()), optimizer, **settings)


def train(work, k, *, federation=FEDERATION, network=toys.linear, extra=()):
  """Runs one client: (variables, extra, report)."""
  return work(toys.start(network), federation.examples, toys.one(federation, k), extra,
              toys.key(1))


@partial(toys.jit, static_argnums=3)
def shuffle(key, epoch, client, multiple):
  return local.shuffle(jax.random.fold_in(key, epoch), client, multiple)


def row_order(k, epochs=2, batch=3):
  """Returns the batches of a client as lists of positions in its own rows."""
  own = toys.rows(FEDERATION.clients)[k].tolist()
  batches = []
  for epoch in range(epochs):
    order = shuffle(toys.key(1), epoch, toys.one(FEDERATION, k), batch)[:len(own)]
    places = [own.index(row) for row in order]
    batches += [places[i:i + batch] for i in range(0, len(own), batch)]
  return batches


def by_hand(k, rule, batches=None):
  """Runs softmax regression with an optimizer `rule`: (params, gradient, memory, step)."""
  x, y = TABLES[k]
  params, memory = toys.twin(toys.start(toys.linear)), {}
  for step, rows in enumerate(batches or row_order(k), 1):
    gradient = softmax_regression.gradient(params, x[rows], y[rows])
    params, memory = rule(params, gradient, memory, step)
  return params


def adamw(params, gradient, memory, step):
  m = {n: 0.9 * memory.get(('m', n), 0) + 0.1 * gradient[n] for n in params}
  v = {n: 0.999 * memory.get(('v', n), 0) + 0.001 * gradient[n]**2 for n in params}
  unit = {n: m[n] / (1 - 0.9**step) / (np.sqrt(v[n] / (1 - 0.999**step)) + 1e-8) for n in params}
  params = {n: params[n] - LR * (unit[n] + 0.1 * params[n]) for n in params}
  return params, {('m', n): m[n] for n in m} | {('v', n): v[n] for n in v}


def proximal(params, gradient, memory, step):
  del step
  start = memory or params
  return {n: params[n] - LR * (gradient[n] + 0.5 * (params[n] - start[n])) for n in params}, start


class LocalTrainingTest(absltest.TestCase):

  def test_equals_softmax_regression_by_hand(self):
    for k in (0, 1, 3):
      variables, _, report = train(work(toys.linear), k)
      x, y = TABLES[k]
      batches = row_order(k)
      start = toys.twin(toys.start(toys.linear))
      toys.assert_close(variables['params']['head'], client_update(start, x, y, batches, lr=LR))

      seen = [softmax_regression.losses(
          client_update(start, x, y, batches[:s], lr=LR), x[rows], y[rows])
              for s, rows in enumerate(batches)]
      toys.assert_close(report.loss, np.concatenate(seen).mean())
      self.assertEqual(
          (report.id, report.size, report.steps, report.finite),
          (toys.IDS[k], len(y), len(batches), True))

  def test_steps_instead_of_epochs(self):
    # Of 7 rows in batches of 3 an epoch is 3 steps, the last on one row.
    steps = 7
    variables, _, report = train(work(toys.linear, steps=steps), 0)
    batches = row_order(0, epochs=3)[:steps]
    start = toys.twin(toys.start(toys.linear))
    toys.assert_close(
        variables['params']['head'], client_update(start, *TABLES[0], batches, lr=LR))
    self.assertEqual(report.steps, steps)


@cache
def continued(loss=LOSS, optimizer='adamw', **settings):
  return toys.jit(local.continued_training(loss, OPTIMIZERS[optimizer], **settings))


class ContinuedTrainingTest(absltest.TestCase):

  def test_goes_on_where_it_stopped(self):
    one = (FEDERATION.examples, toys.one(FEDERATION, 0))
    once, start = continued(batch=99), toys.start(toys.linear)
    fresh = OPTIMIZERS['adamw'].init(start['params'])
    first, state, _ = once(start, *one, fresh, toys.key(1))
    second, _, report = once(first, *one, state, toys.key(2))
    expected = by_hand(0, adamw, [list(range(7))] * 2)
    toys.assert_close(second['params']['head'], expected, rtol=1e-4)
    self.assertEqual(report.steps, 1)
    # `local_training` forgets.
    anew, _, _ = work(toys.linear, 'adamw', batch=99, epochs=1)(first, *one, (), toys.key(2))
    toys.assert_close(anew, once(first, *one, fresh, toys.key(2))[0])
    toys.assert_far(anew, second)

  def test_a_client_without_rows_keeps_its_optimizer(self):
    state = OPTIMIZERS['adamw'].init(toys.start(toys.linear)['params'])
    state = jax.tree.map(lambda x: x + 1, state)
    variables, kept, _ = train(continued(batch=99), 2, extra=state)
    toys.assert_close((variables, kept), (toys.start(toys.linear), state), rtol=0, atol=0)

  def test_the_loss_gets_the_start_and_nothing_else(self):
    seen = []

    def loss(params, statistics, batch, start, extra, key):
      seen.append(extra)
      return losses.proximal(LOSS, 0.5)(params, statistics, batch, start, extra, key)

    state = OPTIMIZERS['sgd'].init(toys.start(toys.linear)['params'])
    variables, _, _ = train(continued(loss, 'sgd', batch=3, epochs=2), 0, extra=state)
    toys.assert_close(variables['params']['head'], by_hand(0, proximal))
    self.assertEqual(set(seen), {()})


def witness(carry, given, minibatch, key):
  """An update that only remembers what it was given; its loss is the mean row number."""
  model, steps, visits, _ = carry
  rows = minibatch.x['row']
  value = jnp.where(minibatch.mask, rows, 0).sum() / minibatch.mask.sum()
  model = {'sum': model['sum'] + given['rate'] * jnp.where(minibatch.mask, rows, 0).sum()}
  return (model, steps + 1, visits.at[rows].add(minibatch.mask), jax.random.key_data(key)), value


@cache
def witnessing(**settings):
  return toys.jit(local.over_minibatches(witness, batch=3, **settings))


def visit(k, **settings):
  examples, rows = SPARE.examples, jnp.arange(len(SPARE.examples.y))
  carry = ({'sum': jnp.float32(1)}, jnp.int32(10), jnp.zeros(len(rows), jnp.int32),
           jax.random.key_data(toys.key(9)))
  return witnessing(**settings)(
      carry, {'rate': jnp.float32(0.5)}, Examples({'row': rows}, examples.y), toys.one(SPARE, k),
      toys.key(1))


class OverMinibatchesTest(parameterized.TestCase):

  @parameterized.parameters(0, 1, 3)
  def test_an_epoch_visits_every_own_row_once(self, k):
    own = toys.rows(SPARE.clients)[k]
    (model, steps, visits, last), report = visit(k, epochs=2)
    expected = np.zeros(len(visits))
    expected[own] = 2
    np.testing.assert_array_equal(visits, expected)
    batches = -(-len(own) // 3)
    self.assertEqual((steps - 10, report.steps), (2 * batches, 2 * batches))
    toys.assert_close(model['sum'], 1 + 0.5 * 2 * own.sum())
    # A short batch counts for as many rows as it has.
    toys.assert_close(report.loss, own.mean())
    self.assertEqual((report.id, report.size, report.finite), (toys.IDS[k], len(own), True))
    expected = jax.random.fold_in(jax.random.fold_in(toys.key(1), 1), batches - 1)
    np.testing.assert_array_equal(last, jax.random.key_data(expected))

  def test_so_many_steps(self):
    own = toys.rows(SPARE.clients)[0]
    (_, steps, visits, _), report = visit(0, steps=4)
    self.assertEqual((steps - 10, report.steps), (4, 4))
    # Three batches are an epoch of seven rows; the fourth begins another.
    self.assertEqual(sorted(visits[own].tolist()), [1] * 4 + [2] * 3)
    self.assertEqual(visits.sum(), 10)

  def test_without_rows_nothing_is_updated(self):
    for settings in ({'epochs': 2}, {'steps': 4}):
      (model, steps, visits, last), report = visit(2, **settings)
      self.assertEqual((model['sum'], steps, visits.sum()), (1, 10, 0))
      np.testing.assert_array_equal(last, jax.random.key_data(toys.key(9)))
      self.assertEqual((report.loss, report.steps, report.size, report.finite), (0, 0, 0, True))

  def test_says_whether_loss_and_model_are_finite(self):
    def update(carry, given, minibatch, key):
      weight, other, loss = given
      return ({'w': weight}, other), loss

    train = toys.jit(local.over_minibatches(update, batch=3))
    for weight, loss, other, finite in (
        (1, 1, np.nan, True), (np.nan, 1, 1, False), (np.inf, 1, 1, False), (1, np.nan, 1, False)):
      given = tuple(map(jnp.float32, (weight, other, loss)))
      _, report = train(({'w': jnp.float32(0)}, jnp.float32(0)), given, SPARE.examples,
                        toys.one(SPARE, 0), toys.key(1))
      self.assertEqual(report.finite, finite)

  @parameterized.parameters(
      ({'batch': 0}, 'batch=0'), ({'epochs': 0}, 'epochs=0, steps=0'), ({'steps': -1}, 'steps=-1'))
  def test_refuses_settings_out_of_range(self, settings, got):
    with self.assertRaisesRegex(InputError, f'got .*{got}'):
      local.over_minibatches(witness, **{'batch': 3} | settings)


class RaggedTest(parameterized.TestCase):

  def test_padding_changes_nothing(self):
    program = work(toys.norm, 'adamw')
    for k in range(4):
      tight, wide = (train(program, k, federation=federation, network=toys.norm)
                     for federation in (FEDERATION, SPARE))
      toys.assert_close(wide, tight, rtol=1e-6, atol=1e-7)

  @pytest.mark.slow
  def test_padding_changes_nothing_for_a_convolution(self):
    tight, wide = (train(work(toys.cnn), 0, network=toys.cnn, federation=toys.federation(
        (4, 2), shape=(4, 4, 1), spare=spare)) for spare in (0, 3))
    toys.assert_close(wide, tight)

  def test_statistics_are_those_of_the_rows(self):
    # The last batch of an epoch is one row and two of padding.
    variables, _, _ = train(work(toys.norm, 'adamw'), 0, network=toys.norm)
    mean, var = np.zeros(4), np.ones(4)
    for rows in row_order(0):
      mean = 0.9 * mean + 0.1 * TABLES[0][0][rows].mean(axis=0)
      var = 0.9 * var + 0.1 * TABLES[0][0][rows].var(axis=0)
    toys.assert_close(
        variables['batch_stats']['trunk']['BatchNorm_0'], {'mean': mean, 'var': var})

  def test_a_client_without_rows_stays_as_it_was(self):
    variables, _, report = train(work(toys.norm, 'adamw'), 2, network=toys.norm)
    toys.assert_close(variables, toys.start(toys.norm), rtol=0, atol=0)
    self.assertEqual((report.loss, report.size, report.steps, report.finite), (0, 0, 0, True))

  @parameterized.named_parameters(
      ('nan', np.nan, 0), ('infinite', np.inf, 0), ('huge', 3e38, 0), ('out_of_bounds', 0, 10**6))
  def test_what_padding_points_to_is_never_read(self, value, beyond):
    examples, clients = SPARE.examples, SPARE.clients
    used = np.arange(clients.index.shape[1]) < clients.size[:, None]
    nobodys = len(examples.y) - 1
    poisoned = SPARE._replace(
        examples=examples._replace(x=examples.x.at[nobodys].set(value)),
        clients=clients._replace(index=np.where(used, clients.index, nobodys + beyond)))
    for k in range(4):
      program = work(toys.norm, 'adamw')
      toys.assert_close(train(program, k, federation=poisoned, network=toys.norm),
                        train(program, k, network=toys.norm, federation=SPARE))


class ReportTest(parameterized.TestCase):

  @parameterized.parameters(np.nan, np.inf)
  def test_says_that_a_model_is_not_finite(self, value):
    row = toys.rows(FEDERATION.clients)[1][0]
    x = FEDERATION.examples.x.at[row, 0].set(value)
    broken = FEDERATION._replace(examples=FEDERATION.examples._replace(x=x))
    self.assertFalse(train(work(toys.linear), 1, federation=broken)[2].finite)
    self.assertTrue(train(work(toys.linear), 0, federation=broken)[2].finite)

  def test_says_that_statistics_are_not_finite(self):
    start = toys.start(toys.norm)
    broken = {**start, 'batch_stats': jax.tree.map(lambda x: x * np.nan, start['batch_stats'])}
    given = FEDERATION.examples, toys.one(FEDERATION, 0), (), toys.key(1)
    program = work(toys.norm, 'adamw')
    self.assertEqual([program(begin, *given)[2].finite for begin in (start, broken)],
                     [True, False])

  def test_every_step_has_a_key_of_its_own(self):
    def loss(params, statistics, batch, start, extra, key):
      draw = jax.random.normal(key)
      return LR * params['w'] * draw, ({'params': params, **statistics}, draw)

    program = training(loss)
    run = partial(program, {'params': {'w': jnp.float32(0)}}, FEDERATION.examples,
                  toys.one(FEDERATION, 0), ())
    variables, _, _ = run(toys.key(1))
    keys = [jax.random.fold_in(jax.random.fold_in(toys.key(1), e), s)
            for e in range(2) for s in range(3)]
    draws = np.array([jax.random.normal(k) for k in keys])
    self.assertLen(set(draws.tolist()), 6)
    toys.assert_close(variables['params']['w'], -LR**2 * draws.sum())
    toys.assert_far(variables, run(toys.key(2))[0])


class RowsTest(parameterized.TestCase):

  @parameterized.parameters(1, 3)
  def test_shuffle_permutes_the_own_rows(self, multiple):
    client = toys.one(SPARE, 0)
    own = toys.rows(SPARE.clients)[0].tolist()
    orders = []
    for epoch in range(4):
      order = shuffle(toys.key(0), epoch, client, multiple)
      self.assertEqual(len(order) % multiple, 0)
      self.assertGreaterEqual(len(order), len(client.index))
      orders.append(tuple(order[:len(own)].tolist()))
      self.assertEqual(sorted(orders[-1]), sorted(own))
    self.assertLen(set(orders), 4)

  def test_shuffle_is_uniform(self):
    orders = jax.vmap(shuffle, (None, 0, None, None))(
        toys.key(0), np.arange(3000), toys.one(SPARE, 1), 1)
    _, counts = np.unique(orders[:, :3], axis=0, return_counts=True)
    self.assertLen(counts, 6)
    self.assertLess(((counts - 500) ** 2 / 500).sum(), 20.5)  # 5 degrees of freedom, 0.1 %.

  def test_gather_masks_what_lies_beyond_the_size(self):
    batch = toys.jit(local.gather, static_argnums=3)(
        FEDERATION.examples, np.array([5, 2, 9, 0, 0, 0]), 2, 2, 3)
    np.testing.assert_array_equal(batch.mask, [True, False])
    np.testing.assert_array_equal(batch.x[0], FEDERATION.examples.x[9])
    self.assertEqual(batch.y[0], FEDERATION.examples.y[9])

  def test_gather_takes_any_tree_of_inputs(self):
    x, y = FEDERATION.examples
    batch = toys.jit(local.gather, static_argnums=3)(
        Examples({'a': x, 'b': np.arange(len(y))}, y), np.array([4, 1, 3]), 1, 2, 3)
    np.testing.assert_array_equal(batch.x['b'], [1, 3])
    np.testing.assert_array_equal(batch.x['a'], np.asarray(x)[[1, 3]])


@cache
def full_gradient(batch):
  return toys.jit(local.full_gradient(LOSS, batch=batch))


class FullGradientTest(parameterized.TestCase):

  @parameterized.parameters(3, 99)
  def test_is_that_of_all_rows_for_any_batch(self, batch):
    start = toys.start(toys.linear)
    for k, (x, y) in enumerate(TABLES):
      got = full_gradient(batch)(
          start, FEDERATION.examples, toys.one(FEDERATION, k), (), toys.key(1))
      twin = toys.twin(start)
      toys.assert_close(got['head'], softmax_regression.gradient(twin, x, y) if len(y) else
                        jax.tree.map(np.zeros_like, twin))

  def test_the_loss_gets_the_start_the_statistics_and_the_extra(self):
    start = toys.start(toys.norm)
    running = {'mean': jnp.arange(4.0), 'var': jnp.ones(4)}
    start = {**start, 'batch_stats': {'trunk': {'BatchNorm_0': running}}}

    def loss(params, statistics, batch, given, extra, key):
      means = statistics['batch_stats']['trunk']['BatchNorm_0']['mean']
      value = (extra * means.sum() * params['head']['bias'].sum()
               + (given['params']['head']['kernel'] * params['head']['kernel']).sum())
      # Statistics that change here change nothing.
      moved = jax.tree.map(lambda x: x + 1, statistics)
      return value + 0 * jax.random.normal(key), ({**moved, 'params': params}, value)

    got = toys.jit(local.full_gradient(loss, batch=3))(
        start, FEDERATION.examples, toys.one(FEDERATION, 0), 2.5, toys.key(1))
    toys.assert_close(got['head'], {
        'bias': np.full(3, 2.5 * 6), 'kernel': start['params']['head']['kernel']})


if __name__ == '__main__':
  absltest.main()
