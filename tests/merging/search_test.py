"""Searches against the solutions and the steps that they are to take."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import toys

from hmm_jax.merging import atlas as anchors
from hmm_jax.merging import search


def free(c):
  return c


def run(made, loss, start, batches, **settings):
  """Returns where a search ends, and its trace."""
  return runner(made, loss, start, batches, **settings)(0)


def runner(made, loss, start, batches, *, evaluate=jnp.sum, project=free):
  """Returns (seed) -> where a search ends, and its trace; it is compiled once."""
  search = toys.jit(lambda key: made.run(loss, evaluate, start, batches, key, project))

  def run(seed):
    trace = search(toys.key(seed))
    return trace.c[-1], trace

  return run


def whole(rows, steps):
  """Returns batches of all rows."""
  return jnp.tile(jnp.arange(rows), (steps, 1))


def least_squares(units):
  """Returns a quadratic loss in coefficients of an atlas, its start and its lowest point."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(30, 8)), rng.normal(size=30)
  place, rows = rng.normal(size=8), np.array([1.0, 0.3, 3.0])[:, None] * rng.normal(size=(3, 8))
  as_tree = lambda v: {'a': jnp.float32(v[..., :4]), 'b': jnp.float32(v[..., 4:])}
  unit = {'a': 0, 'b': units - 1}
  atlas = anchors.empty(as_tree(place), 4)
  atlas, _ = anchors.add(atlas, as_tree(rows), jnp.array([4, 1, 7]), 0, eviction=anchors.oldest)
  lengths = {1: anchors.to_median, 2: anchors.to_median_by_unit}[units]
  scale = lengths(atlas, unit)

  def loss(c, batch):
    theta = anchors.merge(as_tree(place), c * scale, unit, atlas.updates)
    return jnp.square(jnp.float32(x)[batch] @ jnp.concatenate([theta['a'], theta['b']])
                      - jnp.float32(y)[batch]).mean() / 2

  span = rows if units == 1 else np.concatenate([
      np.pad(rows[:, :4], [(0, 0), (0, 4)]), np.pad(rows[:, 4:], [(0, 0), (4, 0)])])
  solution = np.linalg.lstsq(x @ span.T, y - x @ place)[0]
  weights = np.concatenate([solution.reshape(units, 3).T, np.zeros((1, units))])
  return loss, jnp.full((4, units), 0.3), scale, weights


class GradientSearchTest(parameterized.TestCase):

  @parameterized.parameters(1, 2)
  def test_finds_the_least_squares_solution_in_the_span(self, units):
    loss, start, scale, weights = least_squares(units)
    c, trace = run(search.gradient_search(optax.sgd(0.1, momentum=0.9)), loss, start,
                   whole(30, 600))
    self.assertGreater(np.abs((start - c)[:3]).min(), 0.05)
    np.testing.assert_allclose(c * scale, weights, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(c[3], start[3])  # Of the empty slot.
    np.testing.assert_allclose(trace.loss[-1], loss(c, jnp.arange(30)), rtol=1e-5)

  @parameterized.parameters(0.0, 0.5)
  def test_a_pull_holds_it_back(self, pull):
    start, goal = jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [-2.0]])
    loss = lambda c, batch: jnp.square(c - goal).sum() / 2
    c, trace = run(search.gradient_search(optax.sgd(0.04), pull=pull), loss, start,
                   jnp.zeros((400, 1)))
    wanted = (goal + pull * start) / (1 + pull)
    np.testing.assert_allclose(c, wanted, rtol=1e-4)
    # What is reported is without the pull.
    np.testing.assert_allclose(trace.loss[-1], loss(wanted, None), atol=1e-4)

  def test_every_step_is_on_its_own_minibatch_and_projected(self):
    loss = lambda c, batch: (c * batch).sum()
    batches = jnp.array([[1.0], [-2.0], [3.0], [-4.0], [-5.0]])[:, None]
    project = lambda c: jnp.clip(c, -3, 2)
    start = jnp.array([[0.0]])
    made = search.gradient_search(optax.sgd(1.0))
    c, trace = run(made, loss, start, batches, project=project)
    np.testing.assert_allclose(trace.held_out_loss, [-1, 1, -2, 2, 2])
    np.testing.assert_allclose(trace.loss, [0, 2, 3, 8, -10])
    self.assertEqual(float(c[0, 0]), 2)
    self.assertEqual((made.gradients, made.forwards), (1, 0))

  def test_the_optimizer_sees_the_coefficients_and_keeps_its_memory(self):
    optimizer = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9))
    loss = lambda c, batch: (c * batch).sum()
    c, _ = run(search.gradient_search(optimizer), loss, jnp.array([2.0]), jnp.ones((2, 1)))
    # First 1 + .5 * 2; then .9 of it and 1 + .5 * 1.8.
    np.testing.assert_allclose(c, [2 - 0.2 - 0.1 * (0.9 * 2 + 1.9)], rtol=1e-6)


class CheckpointsTest(parameterized.TestCase):

  @parameterized.parameters((1, 1), (4, 4), (6, 3), (7, 1), (10, 5))
  def test_part_any_number_of_steps_evenly(self, steps, checkpoints):
    values = np.random.default_rng(0).normal(size=steps).astype(np.float32)
    loss = lambda c, batch: c.sum() + batch.sum()
    _, trace = run(search.gradient_search(optax.sgd(1.0)), loss, jnp.array([0.0]), values[:, None],
                   evaluate=lambda c: 100 * c.sum())
    every = steps // checkpoints
    self.assertEqual(trace.step.tolist(), [every * (1 + i) for i in range(checkpoints)])
    wanted = (values - np.arange(steps)).reshape(checkpoints, every).mean(axis=1)
    np.testing.assert_allclose(trace.loss, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(trace.held_out_loss, -100 * np.asarray(trace.step), rtol=1e-6)
    np.testing.assert_array_equal(trace.c[:, 0], -np.asarray(trace.step))

  @parameterized.parameters((6, [2, 4, 6]), (7, [7]))
  def test_of_an_evolution_are_alike(self, steps, checkpoints):
    batches = jnp.arange(steps, dtype=jnp.float32)[:, None]
    made = search.evolution_search(sigma=0.1, population=4)
    c, trace = run(made, lambda c, batch: batch.sum(), jnp.zeros(2), batches,
                   evaluate=lambda c: c[0])
    self.assertEqual(trace.step.tolist(), checkpoints)
    parts = np.arange(steps).reshape(len(checkpoints), -1)
    np.testing.assert_allclose(trace.loss, parts.mean(axis=1))
    np.testing.assert_array_equal(trace.held_out_loss, trace.c[:, 0])
    self.assertEqual(trace.c.shape, (len(checkpoints), *c.shape))


class EvolutionSearchTest(parameterized.TestCase):

  @parameterized.parameters(1, 2)
  def test_comes_near_the_least_squares_solution(self, units):
    loss, start, scale, weights = least_squares(units)
    usable, rows = scale > 0, jnp.arange(30)
    lowest = loss(jnp.where(usable, weights / scale, 0), rows)
    gap = lambda c: float(loss(c, rows) - lowest)
    self.assertGreater(gap(start), 1)
    go = runner(search.evolution_search(sigma=0.3, population=16), loss, start, whole(30, 200),
                project=lambda c: jnp.where(usable, c, 0))
    for seed in range(3):
      c, _ = go(seed)
      self.assertLess(gap(c), 0.03 * gap(start))

  @parameterized.parameters((0.0, 8), (30.0, 3))
  def test_equals_the_steps(self, pull, population):
    start, sigma = np.array([[0.5, -1.0], [0.2, 0.1]], np.float32), 0.4
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(3, 2, 2)).astype(np.float32)
    made = search.evolution_search(sigma=sigma, population=population, pull=pull)
    loss = lambda c, batch: jnp.square(c - batch).sum()
    c, trace = run(made, loss, start, batches, evaluate=lambda c: c[1, 0],
                   project=lambda c: jnp.maximum(c, -1.1))
    mean, length, key = np.float64(start), np.log(sigma), toys.key(0)
    for batch, held_out_loss, seen in zip(batches, trace.held_out_loss, trace.loss, strict=True):
      key, draw_key = jax.random.split(key)
      candidates = []
      for one in jax.random.split(draw_key, population):
        length_key, place_key = jax.random.split(one)
        # Four coefficients: a rate of 1 / sqrt(2 * 4).
        own = length + float(jax.random.normal(length_key)) / np.sqrt(8)
        place = mean + np.exp(own) * np.float64(jax.random.normal(place_key, (2, 2)))
        place = np.maximum(place, -1.1)
        value = np.square(place - batch).sum()
        fitness = value + pull / 2 * np.square(place - start).sum()
        candidates.append((fitness, value, own, place))
      best = sorted(candidates, key=lambda candidate: candidate[0])[:max(population // 4, 1)]
      _, values, lengths, places = zip(*best)
      mean, length = np.mean(places, axis=0), np.mean(lengths)
      np.testing.assert_allclose(held_out_loss, mean[1, 0], rtol=1e-4)
      np.testing.assert_allclose(seen, np.mean(values), rtol=1e-4)
    np.testing.assert_allclose(c, mean, rtol=1e-4)
    self.assertEqual((made.gradients, made.forwards), (0, population))

  def test_what_is_not_a_number_never_wins(self):
    # Lower and lower towards the edge, beyond which there are no numbers.
    loss = lambda c, batch: jnp.where(c[0] > 0.5, jnp.nan, jnp.square(c - 0.45).sum())
    made = search.evolution_search(sigma=0.1, population=32)
    go = runner(made, loss, jnp.zeros(2), jnp.zeros((25, 1)), evaluate=lambda c: c[0])
    for seed in range(3):
      c, trace = go(seed)
      self.assertTrue(np.isfinite(trace.loss).all())
      self.assertLessEqual(float(trace.held_out_loss.max()), 0.5)
      np.testing.assert_allclose(c, 0.45, atol=0.1)

  def test_where_nobody_has_a_loss_it_stands_still(self):
    start = jnp.array([0.3, -0.2])
    made = search.evolution_search(sigma=0.5)
    c, trace = run(made, lambda c, batch: jnp.nan * c.sum(), start, jnp.zeros((4, 1)))
    np.testing.assert_allclose(c, start, rtol=1e-6)
    self.assertTrue(np.isnan(trace.loss).all())

  def test_every_candidate_is_projected(self):
    # Outside of the box everything is better: whoever got there would win.
    loss = lambda c, batch: jnp.where((c < 0).any() | (c > 0.3).any(), -1e3, c.sum())
    made = search.evolution_search(sigma=0.5)
    c, trace = run(made, loss, jnp.full(3, 0.2), jnp.zeros((10, 1)), evaluate=lambda c: c.max(),
                   project=lambda c: jnp.clip(c, 0, 0.3))
    self.assertGreaterEqual(float(trace.loss.min()), 0)
    self.assertTrue(((c >= 0) & (c <= 0.3)).all())
    self.assertLess(float(c.sum()), 0.3)

  def test_draws_follow_the_key(self):
    loss, start, *_ = least_squares(1)
    go = runner(search.evolution_search(sigma=0.3), loss, start, whole(30, 3))
    first, again, other = (go(seed)[0] for seed in (0, 0, 1))
    toys.assert_close(first, again, rtol=0, atol=0)
    toys.assert_far(first, other)


class MinibatchesTest(parameterized.TestCase):

  @parameterized.parameters((12, 4, 9), (7, 3, 5), (4, 9, 6), (1, 3, 2))
  def test_every_epoch_visits_each_row_once(self, count, batch, steps):
    rows = jnp.asarray(3 + 2 * np.arange(count), jnp.int32)
    made = np.asarray(search.minibatches(toys.key(1), rows, batch=batch, steps=steps))
    self.assertEqual(made.shape, (steps, min(batch, count)))
    stream = made.ravel()
    for start in range(0, len(stream), count):
      epoch = stream[start:start + count]
      self.assertLen(set(epoch.tolist()), len(epoch))
      self.assertContainsSubset(epoch.tolist(), rows.tolist())

  def test_epochs_and_keys_differ(self):
    rows = jnp.arange(20)
    epochs = np.asarray(search.minibatches(toys.key(1), rows, batch=20, steps=3))
    others = np.asarray(search.minibatches(toys.key(2), rows, batch=20, steps=3))
    self.assertLen({tuple(epoch) for epoch in np.concatenate([epochs, others]).tolist()}, 6)


if __name__ == '__main__':
  absltest.main()
