"""What is kept of a task vector, against sorted lists and at every edge."""

import itertools

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from reference import flat_models, toys
from reference import task_vectors as reference

from hmm_jax import tree
from hmm_jax.merging import sparsify
from hmm_jax.types import InputError

KEY = toys.key(0)


def masks(sparsifier, delta, key):
  """Returns a tree of bools; the n-th leaf's key is folded from n."""
  limits, numbers = sparsifier.limits(delta), dict(zip(sorted(delta), range(len(delta))))
  return {name: sparsifier.keep(x, limits[name], jax.random.fold_in(key, numbers[name]))
          for name, x in delta.items()}


def keeper(*sparsifiers):
  """Returns what each of several leaves of a task vector, by one program: (delta) -> list."""
  run = toys.jit(lambda delta: [masks(sparsifier, delta, KEY) for sparsifier in sparsifiers])
  apply = lambda mask, delta: jax.tree.map(lambda keep, x: np.where(keep, x, 0), mask, delta)
  return lambda delta: [apply(mask, delta) for mask in run(jax.tree.map(jnp.asarray, delta))]


class SparsifyTest(absltest.TestCase):

  def test_largest_equal_those_of_a_sorted_list(self):
    kinds = [*itertools.product([0.0, 1 / 75, 0.03, 0.2, 0.5, 1.0], sparsify.SCOPES)]
    keep = keeper(*[sparsify.largest(*kind) for kind in kinds])
    for grain in (None, 3):
      (model,), base = flat_models.drawn(1, grain=grain)
      delta = flat_models.subtract([model], base)[0]
      wanted = [reference.largest(delta, *kind) for kind in kinds]
      toys.assert_close(keep(delta), wanted, rtol=0, atol=0)

  def test_as_many_are_kept_as_were_asked_for(self):
    delta = {'a': np.float32(np.random.default_rng(0).permutation(51) - 25.25),
             'b': np.float32(np.random.default_rng(1).permutation(50) + 0.5)}
    wanted = {0: 0, 1 / 101: 1, 0.2: 20, 0.5: 50, 100 / 101: 100, 1: 101}
    got = keeper(*[sparsify.largest(density, 'model') for density in wanted])(delta)
    self.assertEqual([sum((x != 0).sum() for x in one.values()) for one in got], [*wanted.values()])

  def test_of_equal_magnitudes_all_are_kept_or_none(self):
    delta = {'a': np.float32([-2, 2, 2, -2]), 'b': np.float32([2, -2])}
    nothing = tree.zeros(delta)
    keep = keeper(sparsify.largest(0.3, 'model'), sparsify.largest(0.3, 'tensor'),
                  sparsify.middle(0.2, 0.2), sparsify.largest(0.0, 'model'),
                  sparsify.largest(0.0, 'tensor'), sparsify.middle(0.5, 0.5))
    toys.assert_close(keep(delta), [delta] * 3 + [nothing] * 3, rtol=0, atol=0)

  def test_ranks_of_magnitudes_of_any_size(self):
    rng = np.random.default_rng(0)
    sizes = np.float32(rng.permutation([1e-38, 1e-30, 1e-3, 1.0, 1 + 2**-23, 2.0, 3e38, np.inf]))
    delta = {'a': sizes[:3] * [1, -1, 1], 'b': -sizes[3:]}
    found = toys.jit(lambda delta: jnp.stack([sparsify.rank(delta, n) for n in range(10)]))(
        jax.tree.map(jnp.float32, delta))
    self.assertGreater(found[0], np.float32(np.inf).view(np.int32))
    np.testing.assert_array_equal(np.asarray(found[1:9]).view(np.float32), np.sort(sizes)[::-1])
    self.assertEqual(found[9], 0)

  def test_middle_equals_that_of_a_sorted_list(self):
    shares = [(0.0, 0.0), (0.85, 0.01), (0.3, 0.2), (0.5, 0.5), (1.0, 0.0), (0.0, 1.0)]
    keep = keeper(*[sparsify.middle(*one) for one in shares])
    for grain in (None, 3):
      (model,), base = flat_models.drawn(1, grain=grain)
      delta = flat_models.subtract([model], base)[0]
      wanted = [reference.middle(delta, *one) for one in shares]
      toys.assert_close(keep(delta), wanted, rtol=0, atol=0)

  def test_a_random_share_is_as_large_as_was_asked_for(self):
    delta = {'a': np.full(3000, 3, np.float32), 'b': np.full((2, 3000), -5, np.float32)}
    densities = [0, 0.0, 0.1, 0.6, 1.0, 1]
    for density, got in zip(densities, keeper(*map(sparsify.random_share, densities))(delta)):
      for name, x in got.items():
        stays = x != 0
        self.assertEqual(set(x[stays]) - set(np.ravel(delta[name])), set())
        # Four standard deviations.
        off = 4 * np.sqrt(density * (1 - density) / x.size)
        self.assertAlmostEqual(stays.mean(), density, delta=off)
      if 0 < density < 1:
        self.assertLen({str((x != 0).tolist()) for x in (got['a'], *got['b'])}, 3)

  def test_middle_refuses_to_drop_more_than_everything(self):
    with self.assertRaisesRegex(InputError, 'got largest=0.4 with smallest=0.7'):
      sparsify.middle(0.7, 0.4)


if __name__ == '__main__':
  absltest.main()
