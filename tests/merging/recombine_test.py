"""Recombination shuffles parts of models, and creates or loses nothing."""

import functools
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax import tree
from hmm_jax.merging import recombine
from hmm_jax.models import cnn, resnet
from hmm_jax.types import InputError

SLOTS = 6
NET = toys.cnn()
UNITS = {'tensor': recombine.tensors, 'layer': recombine.layers,
         **{f'segment-{n}': recombine.segments(n) for n in (1, 3)}}
EVERYBODY = np.ones(SLOTS, bool)
run = toys.jit(recombine.recombine)


@functools.cache
def pool(slots=SLOTS):
  """Returns models in which no value is found twice."""
  variables = toys.start(toys.cnn)
  count, rng = tree.size(variables) * slots, np.random.default_rng(0)
  values = iter(np.split(rng.permutation(count).astype(np.float32), tree.size(variables)))
  fill = lambda x: jnp.asarray(np.stack([next(values) for _ in range(x.size)], axis=1)
                               .reshape(slots, *x.shape))
  return jax.tree.map(fill, variables)


def shuffle(stacked, unit, *, seed=0, returned=EVERYBODY, chance=1.0):
  count = 1 + max(jax.tree.leaves(unit))
  return run(toys.key(seed), stacked, unit, returned=returned,
             chance=np.full(count, chance, np.float32))


def sources(before, after):
  """Returns for each leaf the slot that each slot's values came from: {path: [m]}."""
  found = {}
  for (path, old), new in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after),
                              strict=True):
    old, new = (np.asarray(x).reshape(len(x), -1) for x in (old, new))
    found[jax.tree_util.keystr(path, simple=True, separator='/')] = [
        np.flatnonzero((old == row).all(axis=1)).item() for row in new]
  return found


class RecombineTest(parameterized.TestCase):

  @parameterized.named_parameters((units, units) for units in UNITS)
  def test_nothing_is_created_or_lost(self, units):
    stacked = pool()
    for seed in range(3):
      after = shuffle(stacked, UNITS[units](NET, tree.take(stacked, 0)), seed=seed)
      for old, new in zip(jax.tree.leaves(stacked), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(np.sort(old, axis=0), np.sort(new, axis=0))
      for came_from in sources(stacked, after).values():
        self.assertEqual(sorted(came_from), [*range(SLOTS)])

  @parameterized.parameters(0.0, 0.5, 1.0)
  def test_the_mean_of_the_pool_stays(self, chance):
    stacked = pool()
    after = shuffle(stacked, recombine.tensors(NET, tree.take(stacked, 0)), chance=chance)
    mean = lambda models: jax.tree.map(lambda x: x.mean(axis=0), models)
    toys.assert_close(mean(after), mean(stacked), rtol=1e-5)

  def test_tensors_move_by_themselves(self):
    stacked = pool()
    after = shuffle(stacked, recombine.tensors(NET, tree.take(stacked, 0)))
    came_from = sources(stacked, after)
    self.assertLen({tuple(slots) for slots in came_from.values()}, len(came_from))

  def test_a_layer_keeps_weight_bias_and_statistics_together(self):
    stacked = pool()
    after = sources(stacked, shuffle(stacked, recombine.layers(NET, tree.take(stacked, 0))))
    self.assertEqual(after['params/trunk/Conv_0/kernel'], after['params/trunk/Conv_0/bias'])
    norm = [slots for path, slots in after.items() if 'BatchNorm_0' in path]
    self.assertLen(norm, 4)
    self.assertLen({tuple(slots) for slots in norm}, 1)
    self.assertLen({tuple(slots) for slots in after.values()}, 3)

  def test_one_segment_is_the_whole_model(self):
    stacked = pool()
    after = shuffle(stacked, recombine.segments(1)(NET, tree.take(stacked, 0)))
    self.assertLen({tuple(slots) for slots in sources(stacked, after).values()}, 1)

  @parameterized.parameters(2, 3, 4, 10)
  def test_segments_are_consecutive_and_even(self, count):
    network = cnn.cnn('lenet', classes=10, input_shape=(28, 28, 1))
    variables = jax.eval_shape(network.init, toys.key(0))
    unit = recombine.segments(count)(network, variables)
    place = {path: i for i, path in enumerate(
        ('trunk/Conv_0', 'trunk/Conv_1', 'trunk/Dense_0', 'trunk/Dense_1', 'head'))}
    # The order of the names is another: 'head' comes first there.
    in_order = sorted(zip(map(place.get, jax.tree.leaves(network.groups(variables))),
                          jax.tree.leaves(unit), strict=True))
    numbers = [number for _, number in in_order]
    self.assertEqual(numbers, sorted(numbers))
    lengths = np.bincount(numbers, minlength=count)
    self.assertLen(lengths, count)
    self.assertLessEqual(lengths.max() - lengths.min(), 1)

  def test_the_tensors_of_a_module_keep_their_order(self):
    # So many tensors that a sort would move equal ones, if it could.
    network = resnet.resnet('20', classes=10, input_shape=(8, 8, 3))
    variables = jax.eval_shape(network.init, toys.key(0))
    groups = jax.tree.leaves(network.groups(variables))
    numbers = jax.tree.leaves(recombine.tensors(network, variables))
    self.assertEqual(sorted(numbers), [*range(len(groups))])
    for module in set(groups):
      own = [number for number, group in zip(numbers, groups, strict=True) if group == module]
      self.assertEqual(own, [*range(own[0], own[0] + len(own))])

  @parameterized.parameters(0, 9)
  def test_a_number_of_segments_that_cannot_be(self, count):
    with self.assertRaisesRegex(InputError, f'got segments={count}; expected from 1 to 8'):
      recombine.segments(count)(NET, toys.start(toys.cnn))

  @parameterized.parameters([(1, 4)], [(0, 2)])
  def test_who_did_not_return_stays_out(self, lost):
    stacked, returned = pool(), ~np.isin(np.arange(SLOTS), lost)
    unit = recombine.tensors(NET, tree.take(stacked, 0))
    seen = set()
    for seed in range(4):
      for came_from in sources(
          stacked, shuffle(stacked, unit, seed=seed, returned=returned)).values():
        self.assertEqual([came_from[slot] for slot in lost], [*lost])
        self.assertEqual(sorted(came_from), [*range(SLOTS)])
        seen.add(tuple(came_from))
    self.assertGreater(len(seen), 12)

  def test_what_is_not_shuffled_is_averaged_over_who_returned(self):
    stacked, returned = pool(), np.array([True, False, True, True, False, True])
    unit = recombine.tensors(NET, tree.take(stacked, 0))
    after = shuffle(stacked, unit, returned=returned, chance=0.0)
    for old, new in zip(jax.tree.leaves(stacked), jax.tree.leaves(after), strict=True):
      np.testing.assert_array_equal(new[~returned], old[~returned])
      for row in new[returned]:
        np.testing.assert_allclose(row, old[returned].mean(axis=0), rtol=1e-6)

  def test_nobody_returned(self):
    stacked = pool()
    unit = recombine.tensors(NET, tree.take(stacked, 0))
    for chance in (0.0, 1.0):
      toys.assert_close(shuffle(stacked, unit, returned=~EVERYBODY, chance=chance), stacked)

  def test_each_unit_is_shuffled_as_often_as_its_chance_says(self):
    chance, draws = np.array([0, 0.25, 0.75, 1], np.float32), 2000
    stacked = [jnp.arange(3.0)] * 4  # Three slots, four units.
    after = np.stack(toys.jit(jax.vmap(lambda key: recombine.recombine(
        key, stacked, [0, 1, 2, 3], returned=np.ones(3, bool), chance=chance)))(
            jax.random.split(toys.key(5), draws)))
    shuffled = after.std(axis=2) > 0.1  # [units, draws]; all slots are alike where averaged
    # Each is 3.9 standard deviations: one in 10^4 is further off.
    off = 3.9 * np.sqrt(chance * (1 - chance) / draws)
    np.testing.assert_array_less(np.abs(shuffled.mean(axis=1) - chance), off + 1e-9)
    both = (shuffled[1] & shuffled[2]).mean()
    self.assertAlmostEqual(both, 0.25 * 0.75, delta=0.034)

  def test_no_key_serves_two_draws(self):
    stacked, used = pool(), []

    def watching(draw):
      def watched(key, *args):
        used.append(tuple(jax.random.key_data(key).tolist()))
        return draw(key, *args)
      return watched

    with (mock.patch.object(jax.random, 'split', watching(jax.random.split)),
          mock.patch.object(jax.random, 'bernoulli', watching(jax.random.bernoulli))):
      stacked = [x[:, :2] for x in jax.tree.leaves(stacked)[:3]]
      recombine.recombine(toys.key(0), stacked, [0, 1, 2], returned=EVERYBODY,
                          chance=np.full(3, 0.5, np.float32))
    self.assertLen(used, 3)  # The key itself, that of the permutations, that of the coins.
    self.assertLen(set(used), 3)


class PermutationTest(parameterized.TestCase):

  @parameterized.parameters([(True,) * 3], [(True,) * 4], [(True, False, True, True, False)])
  def test_every_permutation_is_as_likely(self, returned):
    draws = 6000
    keys = jax.random.split(toys.key(7), draws)
    permutations = np.asarray(jax.vmap(recombine.permutation, (0, None))(keys, np.array(returned)))
    kinds, counts = np.unique(permutations, axis=0, return_counts=True)
    expected = draws / [1, 1, 2, 6, 24][sum(returned)]
    self.assertLen(kinds, round(draws / expected))
    chi_square = ((counts - expected)**2 / expected).sum()
    # Less than one in 10^4 draws is that far off, with 5 and with 23 degrees of freedom.
    self.assertLess(chi_square, {6: 25.7, 24: 57.4}[len(kinds)])


if __name__ == '__main__':
  absltest.main()
