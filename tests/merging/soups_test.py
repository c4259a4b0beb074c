"""Soups against plain loops, on losses whose gradients are known, and of networks."""

from functools import cache
import itertools
from types import SimpleNamespace

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import normalized, toys
from reference import soups as reference

from hmm_jax import tree
from hmm_jax.merging import soups
from hmm_jax.tasks.classification import CLASSIFICATION
from hmm_jax.types import Examples

BATCHES = np.random.default_rng(9).normal(size=(20,)).astype(np.float32)


class GreedySoupTest(parameterized.TestCase):

  def test_greedy_equals_the_loop(self):
    sizes = set()
    for seed in range(3):
      models, goal, _ = reference.drawn(6, seed)
      models = [{name: goal[name] + (1 + k / 3) * x for name, x in model.items()}
                for k, model in zip(np.random.default_rng(seed).permutation(6), models)]
      score = lambda params, goal=goal: -float(reference.apart(params, goal))
      members = reference.greedy(models, score)
      got = greedy()(reference.stack(models), jax.tree.map(jnp.float32, goal))
      toys.assert_close(got.params, reference.mean([models[k] for k in members]), atol=1e-5)
      wanted = np.isin(np.arange(6), members)[:, None] / len(members)
      np.testing.assert_allclose(got.weights, wanted, rtol=1e-6)
      sizes.add(len(members))
    self.assertNotEmpty(sizes & {2, 3, 4, 5})

  @parameterized.named_parameters(
      ('the_best_alone_is_better_than_any_mean', [3, 5, 4], 6.0, [5]),
      ('the_second_is_refused_and_the_third_has_its_turn', [0, 3, 7], 1.4, [0, 3]),
      ('a_score_that_does_not_rise_adds_nobody', [2, 2, 2], 0.0, [2]),
      ('a_model_without_a_score_comes_last_and_stays_out', [np.nan, 1, 3], 2.0, [1, 3]),
      ('where_nobody_has_a_score_the_first_is_alone', [1, 3, 4], np.nan, [1]))
  def test_greedy_members(self, values, goal, wanted):
    values = np.float32(values)
    got = greedy()({'x': values}, {'x': jnp.float32(goal)})
    self.assertEqual(values[np.asarray(got.weights)[:, 0] > 0].tolist(), wanted)
    self.assertAlmostEqual(float(got.params['x']), np.mean(wanted))

  def test_greedy_scores_are_of_models_in_their_own_type_and_may_be_counts(self):
    seen = []

    def hits(params):
      seen.append(params['x'].dtype)
      return (params['x'] > jnp.arange(3)).sum(dtype=jnp.uint32)

    got = soups.greedy({'x': np.array([0, 1, 3], jnp.bfloat16)}, hits)
    self.assertEqual(got.params['x'], 3)
    self.assertEqual({got.params['x'].dtype, *seen}, {jnp.dtype(jnp.bfloat16)})

  def test_greedy_soup_counts_hits_of_the_network(self):
    stacked, labels = normalized.models(), normalized.labels()
    hits = lambda params: (normalized.predict()(params).argmax(axis=-1) == labels).mean()
    leaves, structure = jax.tree.flatten(stacked['params'])
    flat = [{i: np.asarray(x[k]) for i, x in enumerate(leaves)} for k in range(3)]
    members = reference.greedy(
        flat, lambda model: hits(jax.tree.unflatten(structure, [*model.values()])))
    row = np.isin(np.arange(3), members) / np.float32(len(members))
    got = normalized.merge(soups.greedy_soup())(stacked)
    toys.assert_close(got, tree.mix(row, stacked['params']))

  def test_as_many_right_answers_in_other_batches_are_no_rise(self):
    model = SimpleNamespace(apply=lambda variables, x, train, mask: (
        jnp.stack([variables['params'][x], jnp.zeros(len(x))], axis=-1), variables),
        task=CLASSIFICATION)
    merge = toys.jit(lambda stacked: soups.greedy_soup()(
        model, {'params': stacked}, None, Examples(jnp.arange(40), jnp.zeros(40, int)),
        jnp.arange(40).reshape(2, 20), None))
    right = {first: np.arange(40) % 20 < np.repeat([first, 33 - first], 20)
             for first in range(13, 21)}
    for alone, mean in itertools.permutations(right.values(), 2):
      one = np.where(alone, 1.0, -1.0)
      # By itself right on few examples; its mean with the other is right on 33, as the other is.
      other = np.where(alone & mean, -0.5, np.where(mean, 3.0, -3.0))
      np.testing.assert_array_equal(merge(jnp.float32([one, other])), one)


@cache
def greedy():
  return toys.jit(lambda stacked, goal: soups.greedy(
      stacked, lambda params: -reference.apart(params, goal)))


class LearnedSoupTest(parameterized.TestCase):
  """The loss is half the squared distance to a goal that each batch stretches."""

  def test_learned_equals_the_loop(self):
    models, goal, _ = reference.drawn(3)
    got = toys.jit(lambda stacked: {by: soups.learned(
        stacked, reference.loss(goal), BATCHES, unit=unit, lr=0.05)
        for by, unit in reference.UNITS.items()})(reference.stack(models))
    for by, unit in reference.UNITS.items():
      wanted = reference.learned(models, reference.gradient(goal), BATCHES, unit, 0.05)
      self.assertGreater(np.abs(wanted - 1 / 3).max(), 0.1)
      np.testing.assert_allclose(got[by].weights, wanted, rtol=1e-3)
      toys.assert_close(got[by].params, reference.mixture(models, wanted, unit), atol=1e-3)

  def test_learned_models_keep_their_type(self):
    seen = []

    def value(params, batch):
      seen.append(params['x'].dtype)
      return params['x'].astype(jnp.float32) * batch

    got = jax.eval_shape(lambda models: soups.learned(
        models, value, BATCHES, unit={'x': 0}, lr=0.1), {'x': jnp.array([1, 2], jnp.bfloat16)})
    self.assertEqual({got.params['x'].dtype, *seen}, {jnp.dtype(jnp.bfloat16)})

  def test_learned_soup_predicts_the_labels_better(self):
    loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(
        normalized.predict()(params), normalized.labels()).mean()
    stacked = normalized.models()
    learn = normalized.merge(soups.learned_soup(by='tensor', epochs=9))
    # Of examples of several models all are seen in an epoch.
    got = learn(stacked, normalized.INDICES[None])
    self.assertLess(loss(got), loss(tree.mean(stacked['params'])) - 0.2)


if __name__ == '__main__':
  absltest.main()
