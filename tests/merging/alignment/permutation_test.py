"""Moved units against entry by entry, assignments against all permutations."""

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
from reference import permutations, toys

from hmm_jax.merging.alignment import permutation
from hmm_jax.types import Symmetry

RNG = np.random.default_rng(0)
SYMMETRY = Symmetry({'kernel': (None, 'a', 'b'), 'tied': ('a', 'a'), 'free': (None,)},
                    {'a': 3, 'b': 4}, {'a': 1, 'b': 2})
LEAVES = {'kernel': RNG.normal(size=(2, 6, 4)), 'tied': RNG.normal(size=(3, 9)),
          'free': RNG.normal(size=5)}
assign = toys.jit(permutation.assign, static_argnums=1)


class PermutationTest(parameterized.TestCase):

  def test_units_move_with_all_their_copies(self):
    matching = {'a': np.array([1, 2, 0]), 'b': np.array([3, 2, 0, 1])}
    got = toys.jit(lambda x: permutation.permute(SYMMETRY, x, matching))(LEAVES)
    for name, groups in SYMMETRY.axes.items():
      np.testing.assert_allclose(got[name], permutations.move(LEAVES[name], groups, matching),
                                 rtol=1e-6)

  def test_the_identity_moves_nothing(self):
    got = permutation.permute(SYMMETRY, LEAVES, permutation.identity(SYMMETRY))
    toys.assert_close(got, LEAVES, rtol=1e-6)
    self.assertEqual({group: places.dtype for group, places in
                      permutation.identity(SYMMETRY).items()}, dict.fromkeys('ab', jnp.int32))

  @parameterized.parameters((6, 1), (6, 3), (1, 1))
  def test_an_assignment_is_the_best_of_all_that_are_allowed(self, count, runs):
    for seed in range(8):
      gains = np.random.default_rng(seed).normal(size=(count, count)).astype(np.float32)
      units = np.asarray(assign([gains], runs)[0])
      self.assertIn(tuple(units.tolist()), permutations.allowed(count, runs))
      self.assertAlmostEqual(gains[np.arange(count), units].sum(),
                             permutations.best(gains, runs), places=5)

  def test_runs_of_tied_groups_are_in_one_order(self):
    for seed in range(8):
      gains = [np.random.default_rng([seed, n]).normal(size=(n, n)).astype(np.float32)
               for n in (6, 3)]
      found = [np.asarray(units) for units in assign(gains, 3)]
      np.testing.assert_array_equal(found[0].reshape(3, 2)[:, 0] // 2, found[1])
      total = lambda own, units: own[np.arange(len(own)), np.asarray(units)].sum()
      best = max(total(gains[0], units) + total(gains[1], [unit // 2 for unit in units[::2]])
                 for units in permutations.allowed(6, 3))
      self.assertAlmostEqual(sum(map(total, gains, found)), best, places=5)

  @parameterized.parameters(1, 3)
  def test_a_planted_order_is_found(self, runs):
    for seed in range(4):
      rng = np.random.default_rng(seed)
      wanted = permutations.draw(rng, Symmetry({}, {'a': 6}, {'a': runs}))['a']
      gains = np.eye(6)[wanted] + rng.uniform(0, 0.4, (6, 6))
      np.testing.assert_array_equal(assign([np.float32(gains)], runs)[0], wanted)

  def test_gains_that_are_not_finite_give_some_permutation(self):
    for bad in (np.nan, np.inf, -np.inf):
      gains = RNG.normal(size=(6, 6)).astype(np.float32)
      gains[2, 3] = bad
      for filled in (gains, np.full_like(gains, bad)):
        self.assertEqual(sorted(assign([filled], 1)[0].tolist()), [*range(6)])


if __name__ == '__main__':
  absltest.main()
