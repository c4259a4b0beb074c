"""Tests that results do not depend on how clients are mapped."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import toys

from hmm_jax import tree
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.types import Cohort, InputError

LIFTS = toys.lifts()
NETWORKS = {'linear': (toys.linear, (4,)), 'cnn': (toys.cnn, (4, 4, 1))}
ROWS = np.array([[0.1, 0.2, 0.3, 0.1, 0.3], [-1, 2, 0, 0.5, -3], [0, 0, 1, 0, 0]], np.float32)


@cache
def problem(name):
  """Returns (local, federation, start, extra): one client has no rows, extras differ."""
  network, shape = NETWORKS[name]
  train = local_training(
      losses.corrected(losses.supervised(network())), optax.sgd(0.2, momentum=0.9),
      batch=3, epochs=2)

  def local(start, examples, client, extra, key):
    variables, correction, report = train(start, examples, client, extra['correction'], key)
    return variables, {'correction': correction, 'seen': extra['seen'] + client.id}, report

  start = toys.start(network)
  ramp = np.arange(5, dtype=np.float32) / 5
  extra = {'correction': jax.tree.map(lambda x: np.multiply.outer(ramp, x), start['params']),
           'seen': np.arange(5, dtype=np.int32) * 100}
  return local, toys.federation((6, 0, 5, 8, 1), shape=shape), start, extra


@cache
def one_at_a_time(name):
  """Returns (stacked, extra, Cohort) by calling `local` in a Python loop."""
  local, federation, start, extra = problem(name)
  program = toys.jit(local)
  results = [
      program(start, federation.examples, toys.one(federation, k),
              tree.take(extra, k),
              jax.random.fold_in(toys.key(1), federation.clients.id[k]))
      for k in range(5)]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


class LiftTest(parameterized.TestCase):

  @parameterized.named_parameters(
      *((lift, 'linear', lift) for lift in ('map', 'sharded-vmap')))
  def test_equals_one_at_a_time(self, name, lift):
    self.assert_equals_one_at_a_time(name, lift)

  @parameterized.product(name=tuple(NETWORKS), lift=tuple(LIFTS))
  @pytest.mark.slow
  def test_equals_one_at_a_time_on_any_network(self, name, lift):
    self.assert_equals_one_at_a_time(name, lift)

  def assert_equals_one_at_a_time(self, name, lift):
    local, federation, start, extra = problem(name)
    train, mix = (make(local, LIFTS[lift]) for make in (mappers.map_clients, mappers.mix_clients))
    args = start, federation.examples, federation.clients, extra, toys.key(1)
    mapped, mixed = toys.jit(lambda rows, args: (train(*args), mix(rows, *args)))(ROWS, args)
    stacked, extra, cohort = expected = one_at_a_time(name)
    toys.assert_close(mapped, expected)
    mix_of_stack = jax.tree.map(lambda x: np.tensordot(ROWS, x, axes=1), stacked)
    toys.assert_close(mixed, (mix_of_stack, extra, cohort), atol=1e-5)

  def test_the_problem_is_ragged_and_alive(self):
    stacked, extra, cohort = one_at_a_time('linear')
    self.assertEqual(cohort.steps.tolist(), [4, 0, 4, 6, 2])
    self.assertTrue(cohort.finite.all())
    np.testing.assert_array_equal(extra['seen'], np.arange(5) * 100 + toys.IDS[:5])
    for a in range(5):
      for b in range(a):
        toys.assert_far(tree.take(stacked, a), tree.take(stacked, b))

  @parameterized.parameters('map', 'vmap-2', 'sharded-map')
  def test_stacked_starts(self, lift):
    def local(start, examples, client, extra, key):
      return start + 10 * client.id + 100 * extra, extra + 1, client.size

    federation, numbers = toys.federation(), jnp.arange(5)
    program = toys.jit(mappers.map_clients(local, LIFTS[lift], start_axis=0))
    stacked, extra, sizes = program(numbers, (), federation.clients, numbers, toys.key(1))
    np.testing.assert_array_equal(stacked, 101 * numbers + 10 * federation.clients.id)
    np.testing.assert_array_equal(extra, numbers + 1)
    np.testing.assert_array_equal(sizes, federation.clients.size)

  def test_keys_follow_the_id(self):
    def local(start, examples, client, extra, key):
      return jax.random.normal(key, (3,)), extra, client.id

    federation = toys.federation()
    order = np.array([3, 0, 4, 1, 2])
    program = toys.jit(mappers.map_clients(local, LIFTS['map']))
    draws, _, ids = program((), (), federation.clients, (), toys.key(1))
    moved, _, moved_ids = program((), (), tree.take(federation.clients, order), (), toys.key(1))
    np.testing.assert_array_equal(ids, federation.clients.id)
    np.testing.assert_array_equal(moved_ids, federation.clients.id[order])
    np.testing.assert_array_equal(moved, np.asarray(draws)[order])
    self.assertLen(np.unique(draws), 15)


def square(shared, one):
  return {'y': shared * one['x'] ** 2}, one['x'].sum()


@jax.custom_batching.custom_vmap
def chunk_maximum(cost):
  """Returns the largest cost among the members that are vectorized together."""
  return cost


@chunk_maximum.def_vmap
def _(size, batched, cost):
  del size, batched
  return jnp.full_like(cost, cost.max()), True


class MapperTest(parameterized.TestCase):

  @parameterized.parameters(*LIFTS)
  def test_results_keep_their_order(self, lift):
    def run(mapper, x, rows, cost):
      return (mapper.each(square, 2.0, {'x': x}, cost),
              mapper.mix(square, rows, 2.0, {'x': x}, cost))

    rng = np.random.default_rng(0)
    for count in (1, 6) if lift in ('vmap-2', 'sharded-vmap') else (6,):
      x = rng.normal(size=(count, 3)).astype(np.float32)
      rows = rng.normal(size=(2, count)).astype(np.float32)
      expected = {'y': 2 * x**2}, x.sum(axis=1)
      mixed = {'y': rows @ expected[0]['y']}, expected[1]
      costs = [None, np.arange(count) * 7 % 4]
      results = toys.jit(lambda x, rows, costs: [run(LIFTS[lift], x, rows, c) for c in costs])(
          x, rows, costs)
      toys.assert_close(results, [(expected, mixed)] * 2)

  def test_a_chunk_is_sorted_by_cost(self):
    # Those that take long share a chunk, so that the others need not wait for them.
    cost = np.array([1, 9, 2, 8, 3])
    seen = mappers.vectorized(2).each(lambda _, one: chunk_maximum(one), (), cost, cost)
    np.testing.assert_array_equal(seen, [1, 9, 3, 9, 3])

  def test_devices_share_the_cost(self):
    # 8 members over 4 devices, dealt back and forth: 8 + 1, 7 + 2, 6 + 3, 5 + 4.
    cost = np.array([3, 8, 1, 6, 2, 7, 5, 4])
    where = LIFTS['sharded-map'].each(
        lambda shared, one: jax.lax.axis_index('clients'), (), cost, cost)
    loads = [cost[np.asarray(where) == device].sum() for device in range(4)]
    self.assertEqual(loads, [9, 9, 9, 9])

  @parameterized.parameters('map', 'vmap-2', 'sharded-map')
  def test_streaming_never_holds_all_results(self, lift):
    shared, stacked = jnp.zeros(10_000), jnp.zeros(64)

    def mix(shared, stacked):
      return LIFTS[lift].mix(lambda shared, one: (shared * one, ()), jnp.ones((1, 64)), shared,
                             stacked)

    memory = toys.jit(mix).lower(shared, stacked).compile().memory_analysis()
    self.assertLess(memory.temp_size_in_bytes, 64 * shared.nbytes / 8)

  def test_refuses_a_negative_chunk(self):
    with self.assertRaisesRegex(InputError, 'got chunk=-1; expected 0'):
      mappers.vectorized(-1)


class MeanOverRowsTest(parameterized.TestCase):

  @parameterized.parameters(('map', 6), ('sharded-map', 8), ('sharded-vmap', 7))
  def test_value_and_gradient_are_those_of_the_plain_mean(self, lift, rows):
    federation, start = toys.federation(), toys.start(toys.linear)
    batch = jax.tree.map(lambda x: x[:rows], federation.examples)

    def values(params, shared, batch):
      logits, _ = toys.linear().apply({'params': params}, shared['scale'] * batch.x)
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)

    mean = mappers.batch_mean(values, LIFTS[lift])
    # As in a search, the parameters depend on what is differentiated, and the mean is used.
    through = lambda mean: lambda c, batch: jnp.square(mean(
        tree.scale(c, start['params']), {'scale': jnp.float32(2)}, batch))
    got, wanted = (toys.jit(jax.value_and_grad(through(f)))(jnp.float32(1.5), batch)
                   for f in (mean, lambda *given: values(*given).mean()))
    toys.assert_close(got, wanted, rtol=1e-4)
    self.assertGreater(abs(wanted[1]), 1e-3)

  def test_rows_are_cut_for_as_many_devices_as_share_them_evenly(self):
    for lift, devices, rows, wanted in (
        ('map', 1, 8, 8), ('sharded-map', 4, 8, 2), ('sharded-map', 4, 6, 3),
        ('sharded-map', 4, 7, 7)):
      seen = []
      def values(params, shared, batch, seen=seen):
        seen.append(len(batch))
        return params * batch
      self.assertEqual(LIFTS[lift].devices, devices)
      mean = mappers.batch_mean(values, LIFTS[lift])
      toys.assert_close(toys.jit(mean)(jnp.float32(2), (), jnp.arange(float(rows))),
                        np.float32(rows - 1))
      self.assertEqual(set(seen), {wanted})


class SearchedTest(parameterized.TestCase):

  @parameterized.named_parameters(('kept', True), ('mixed', False))
  def test_a_client_whose_own_state_is_not_finite_is_reported(self, kept):
    def local(start, examples, client, extra, key):
      report = Cohort(client.id, 0.0, jnp.bool_(True), client.size, 1)
      return start, {'count': extra['count'] + 1, 'inverse': 1 / extra['count']}, report

    federation = toys.federation((2, 2, 2))
    extra = {'count': jnp.array([2., 0., 1.]), 'inverse': jnp.zeros(3)}
    given = jnp.ones(2), federation.examples, federation.clients, extra, toys.key(0)
    if kept:
      *_, report = mappers.map_clients(local, mappers.one_by_one())(*given)
    else:
      *_, report = mappers.mix_clients(local, mappers.one_by_one())(jnp.ones((1, 3)) / 3, *given)
    self.assertEqual(report.finite.tolist(), [True, False, True])


if __name__ == '__main__':
  absltest.main()
