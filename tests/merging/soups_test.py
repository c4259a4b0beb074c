"""Soups against plain loops, on losses whose gradients are known."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import soups as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.merging import soups

SHAPES = {'a': (3, 4), 'b': (5,), 'c': ()}
UNITS = {'model': {'a': 0, 'b': 0, 'c': 0}, 'parts': {'a': 0, 'b': 1, 'c': 1}}
LIFTS = {'model': lambda function: function, 'parts': toys.jit}  # Uncompiled, and compiled.
BATCHES = np.random.default_rng(9).normal(size=(20,)).astype(np.float32)


def drawn(count, seed=0):
  rng = np.random.default_rng(seed)
  models = [{name: rng.normal(size=shape) for name, shape in SHAPES.items()}
            for _ in range(count + 2)]
  return models[:count], *models[count:]


def stack(models):
  return tree.stack([jax.tree.map(jnp.float32, model) for model in models])


def apart(a, b):
  return sum(jnp.square(x - y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


class GreedySoupTest(parameterized.TestCase):

  @parameterized.product(count=[2, 6], seed=[0, 1, 2])
  def test_equals_the_loop(self, count, seed):
    models, goal, _ = drawn(count, seed)
    models = [{name: goal[name] + (1 + k / 3) * x for name, x in model.items()}
              for k, model in zip(np.random.default_rng(seed).permutation(count), models)]
    members = reference.greedy(models, lambda params: -float(apart(params, goal)))
    got = greedy()(stack(models), jax.tree.map(jnp.float32, goal))
    toys.assert_close(got.params, reference.mean([models[k] for k in members]), atol=1e-5)
    wanted = np.isin(np.arange(count), members)[:, None] / len(members)
    np.testing.assert_allclose(got.weights, wanted, rtol=1e-6)
    if count == 6:
      self.assertBetween(len(members), 2, 5)

  @parameterized.parameters(
      ([3, 5, 4], [5], 'the best alone is better than any mean'),
      ([0, 3, 7], [0, 3], 'the second is refused and the third has its turn'),
      ([2, 2, 2], [2], 'a score that does not rise adds nobody'))
  def test_members(self, values, wanted, why):
    goals = {'the best alone is better than any mean': 6.0,
             'the second is refused and the third has its turn': 1.4,
             'a score that does not rise adds nobody': 0.0}
    models = {'x': jnp.float32(values)}
    got = greedy()(models, {'x': jnp.float32(goals[why])})
    members = np.float32(values)[np.asarray(got.weights)[:, 0] > 0].tolist()
    self.assertEqual(members, wanted)
    self.assertAlmostEqual(float(got.params['x']), np.mean(wanted))

  def test_a_model_without_a_score_comes_last_and_stays_out(self):
    models = {'x': jnp.float32([np.nan, 1, 3])}
    got = greedy()(models, {'x': jnp.float32(2)})
    self.assertEqual(got.weights.tolist(), [[0], [0.5], [0.5]])

  def test_where_nobody_has_a_score_the_first_is_alone(self):
    got = greedy()({'x': jnp.float32([1, 3])}, {'x': jnp.float32(np.nan)})
    self.assertEqual(got.weights.tolist(), [[1], [0]])
    self.assertEqual(got.params['x'], 1)

  def test_of_numpy_models_by_hits_that_are_counted(self):
    seen = []

    def hits(params):
      seen.append(params['x'].dtype)
      return (params['x'] > jnp.arange(3)).sum(dtype=jnp.uint32)

    got = soups.greedy_soup({'x': np.array([0, 1, 3], jnp.bfloat16)}, hits)
    self.assertEqual(got.params['x'], 3)
    self.assertEqual({got.params['x'].dtype, *seen}, {jnp.dtype(jnp.bfloat16)})


@cache
def greedy():
  return toys.jit(lambda stacked, goal: soups.greedy_soup(stacked, lambda p: -apart(p, goal)))


class LearnedTest(parameterized.TestCase):
  """The loss is half the squared distance to a goal that each batch stretches."""

  @parameterized.parameters(*UNITS)
  def test_a_learned_soup_equals_the_loop(self, by):
    models, goal, _ = drawn(3)
    wanted = reference.learned(models, gradient(goal), BATCHES, UNITS[by], 0.05)
    got = LIFTS[by](lambda stacked: soups.learned_soup(
        stacked, loss(goal), BATCHES, unit=UNITS[by], lr=0.05))(stack(models))
    self.assertGreater(np.abs(wanted - 1 / 3).max(), 0.1)
    np.testing.assert_allclose(got.weights, wanted, rtol=1e-3)
    toys.assert_close(got.params, reference.mixture(models, wanted, UNITS[by]), atol=1e-3)

  @parameterized.parameters(*UNITS)
  def test_adamerging_equals_the_loop(self, by):
    models, goal, base = drawn(3)
    run = LIFTS[by](lambda stacked, base, lr: soups.adamerging(
        stacked, base, loss(goal), BATCHES, unit=UNITS[by], initial=0.3, lr=lr))
    deltas = [{name: model[name] - base[name] for name in base} for model in models]
    for lr in (1e-3, 0.2):
      wanted = reference.adamerging(models, base, gradient(goal), BATCHES, UNITS[by], 0.3, lr)
      got = run(stack(models), jax.tree.map(jnp.float32, base), lr)
      np.testing.assert_allclose(got.weights, wanted, rtol=1e-3, atol=1e-4)
      # The interval ends at 0, and at 1 for parts of models.
      self.assertEqual(wanted.min() == 0, lr == 0.2)
      self.assertEqual(wanted.max() == 1, lr == 0.2 and by == 'parts')
      change = reference.mixture(deltas, wanted, UNITS[by])
      toys.assert_close(got.params, {name: base[name] + change[name] for name in base}, atol=1e-3)

  def test_models_keep_their_dtype(self):
    models = {'x': jnp.array([1, 2], jnp.bfloat16)}
    seen = []

    def value(params, batch):
      seen.append(params['x'].dtype)
      return params['x'].astype(jnp.float32) * batch

    learn = toys.jit(lambda models: (
        soups.learned_soup(models, value, BATCHES, unit={'x': 0}, lr=0.1),
        soups.adamerging(models, {'x': models['x'][0]}, value, BATCHES, unit={'x': 0},
                         initial=0.3, lr=0.1)))
    for got in learn(models):
      self.assertEqual(got.params['x'].dtype, jnp.bfloat16)
    self.assertEqual(set(seen), {jnp.dtype(jnp.bfloat16)})

  def test_entropy(self):
    p = np.array([[0.5, 0.25, 0.25], [1 / 3] * 3, [0.98, 0.01, 0.01]])
    np.testing.assert_allclose(soups.entropy(jnp.float32(np.log(p) + 7)),
                               -(p * np.log(p)).sum(axis=1), rtol=1e-5)
    self.assertEqual(soups.entropy(jnp.float32([[500, 0, 0]]))[0], 0)


def loss(goal):
  goal = jax.tree.map(jnp.float32, goal)
  return lambda params, batch: apart(params, tree.scale(1 + batch, goal)) / 2


def gradient(goal):
  return lambda params, batch: {name: x - (1 + batch) * goal[name] for name, x in params.items()}


if __name__ == '__main__':
  absltest.main()
