"""The atlas against its slot-by-slot twin, and the models in its span."""

import functools
import itertools

from absl.testing import absltest, parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
from reference import atlas as reference
from reference import toys, two_layer

from hmm_jax import tree
from hmm_jax.merging import atlas as anchors
from hmm_jax.merging import recombine
from hmm_jax.server import objectives

SLOTS = 5
KEYS = {'came': anchors.oldest, 'score': anchors.worst}
LENGTHS = {'whole': anchors.to_median, 'layer': anchors.to_median_by_unit,
           'none': anchors.as_they_are}
# The network's order: the hidden layer, then the head.
NAMES = {'global': [['hidden_kernel', 'hidden_bias', 'kernel', 'bias']],
         'layer': [['hidden_kernel', 'hidden_bias'], ['kernel', 'bias']]}
MAKE = {'global': anchors.whole, 'layer': recombine.layers}
add = toys.jit(anchors.add, static_argnames='eviction')


def params():
  return toys.start(toys.perceptron)['params']


def unit_of(kind):
  return MAKE[kind](toys.perceptron(), {'params': params()})['params']


def updates(count, *, seed=0, empty=()):
  """Returns a stack of updates of clearly different lengths, those of `empty` being 0."""
  rng = np.random.default_rng(seed)
  size = np.where(np.isin(np.arange(count), empty), 0, rng.uniform(0.05, 2, count))
  draw = lambda x: jnp.asarray(size.reshape(-1, *[1] * x.ndim) * rng.normal(size=(count, *x.shape)),
                               jnp.float32)
  return jax.tree.map(draw, params())


def twins(stacked):
  return [toys.twin({'params': update}) for update in tree.unstack(stacked)]


def filled(count, *, slots=SLOTS, seed=0, empty=()):
  """Returns an atlas of so many arrivals, and its twin."""
  stacked = updates(count, seed=seed, empty=empty)
  made, _ = add(anchors.empty(params(), slots), stacked, jnp.arange(count), 0,
                eviction=anchors.oldest)
  twin = reference.empty(slots)
  reference.add(twin, dict(enumerate(twins(stacked))), 0, 'came')
  return made, twin


def small(owner, **columns):
  """Returns an atlas of one number a slot, which is 10 times its owner."""
  zeros = np.zeros(len(owner))
  columns = {'came': zeros, 'score': zeros, 'strikes': zeros, **columns}
  owner = jnp.array(owner, jnp.int32)
  return anchors.Atlas(
      {'w': 10.0 * owner[:, None]}, owner, jnp.array(columns['came'], jnp.int32),
      jnp.array(columns['score'], jnp.float32), jnp.array(columns['strikes'], jnp.int32))


def put(atlas, ids, now=9, eviction=anchors.oldest):
  return add(atlas, {'w': 10.0 * jnp.array(ids)[:, None] + 1}, jnp.array(ids, jnp.int32), now,
             eviction=eviction)


class AtlasTest(parameterized.TestCase):

  def assert_equal_to_twin(self, atlas, twin):
    empty = {'owner': anchors.EMPTY, 'score': 0, 'strikes': 0}
    for name in empty:
      wanted = [(entry or empty)[name] for entry in twin.values()]
      np.testing.assert_allclose(getattr(atlas, name), wanted, atol=1e-6, err_msg=name)
    for slot, entry in twin.items():
      if entry:
        self.assertEqual(atlas.came[slot], entry['came'])
        self.assertEqual(float(atlas.updates['w'][slot, 0]), entry['update'])

  @parameterized.named_parameters((evict, evict) for evict in KEYS)
  def test_equals_its_twin_over_a_random_sequence(self, evict):
    slots, rng = 4, np.random.default_rng(0)
    atlas = anchors.empty({'w': jnp.zeros(1)}, slots)
    twin, dropped, evicted, returned = reference.empty(slots), 0, 0, 0
    step = toys.jit(lambda atlas, w, ids, now: anchors.add(
        atlas, {'w': w}, ids, now, eviction=KEYS[evict]))
    score = toys.jit(lambda atlas, c: anchors.update_scores(atlas, c, decay=0.6))
    drop = toys.jit(lambda atlas: anchors.drop(atlas, 2))
    for now in range(40):
      before = {entry['owner'] for entry in twin.values() if entry}
      ids = np.sort(rng.choice(12, 3, replace=False))
      values = rng.integers(0, 1000, 3)
      places = reference.add(twin, dict(zip(ids.tolist(), values.tolist(), strict=True)), now,
                             evict)
      atlas, found = step(atlas, jnp.float32(values[:, None]), jnp.int32(ids), now)
      self.assertEqual(found.tolist(), [places[i] for i in ids])
      self.assert_equal_to_twin(atlas, twin)
      after = {entry['owner'] for entry in twin.values() if entry}
      evicted, returned = evicted + len(before - after), returned + len(before & {*ids.tolist()})
      coefficients = rng.normal(-0.1, 1, size=(slots, 2))
      reference.judge(twin, coefficients, 0.6)
      atlas = score(atlas, jnp.float32(coefficients))
      self.assert_equal_to_twin(atlas, twin)
      full = sum(entry is not None for entry in twin.values())
      reference.drop(twin, 2)
      atlas = drop(atlas)
      self.assert_equal_to_twin(atlas, twin)
      dropped += full - sum(entry is not None for entry in twin.values())
    self.assertGreater(min(dropped, evicted, returned), 4)

  def test_an_update_replaces_its_owners_older_one(self):
    atlas, slots = put(small([3, 7, -1, 5], score=[.1, .2, 0, .3], strikes=[1, 2, 0, 3],
                             came=[8, 1, 0, 2]), [5, 7])
    self.assertEqual(slots.tolist(), [3, 1])
    self.assertEqual(atlas.owner.tolist(), [3, 7, -1, 5])
    self.assertEqual(atlas.updates['w'][:, 0].tolist(), [30, 71, -10, 51])
    self.assertEqual(atlas.came.tolist(), [8, 9, 0, 9])
    np.testing.assert_allclose(atlas.score, [.1, .2, 0, .3])  # It is inherited.
    self.assertEqual(atlas.strikes.tolist(), [1, 2, 0, 3])

  def test_empty_slots_are_filled_first(self):
    # Nobody who is there has to go, though all came long ago and score low.
    atlas = small([3, -1, 5, -1], came=[-5, 4, -6, 4], score=[-9, 2, -9, 2])
    for rule in (anchors.oldest, anchors.worst):
      after, slots = put(atlas, [1, 2], eviction=rule)
      self.assertEqual(slots.tolist(), [1, 3])
      self.assertEqual(after.owner.tolist(), [3, 1, 5, 2])
      self.assertEqual(after.score.tolist(), [-9, 0, -9, 0])

  @parameterized.parameters((anchors.oldest, [1, 0]), (anchors.worst, [3, 1]))
  def test_then_the_oldest_or_the_worst_makes_room(self, rule, slots):
    # 7 is the next to go by either rule, but it arrives itself.
    atlas = small([3, 5, 7, 9], came=[3, 2, 0, 5], score=[.4, -.1, -.9, -.2], strikes=[1, 2, 3, 4])
    after, found = put(atlas, [1, 7, 2], eviction=rule)
    self.assertEqual(found.tolist(), [slots[0], 2, slots[1]])
    self.assertEqual(after.score[np.array(slots)].tolist(), [0, 0])
    self.assertEqual(after.strikes[np.array(slots)].tolist(), [0, 0])
    self.assertEqual(after.updates['w'][found, 0].tolist(), [11, 71, 21])

  def test_the_order_of_the_arrivals_does_not_matter(self):
    atlas = small([3, 5, 7, -1, 9], came=[3, 2, 0, 0, 2], score=[.4, -.1, -.9, 0, -.2])
    contents = []
    for ids in ([1, 7, 2], [7, 2, 1], [2, 1, 7]):
      after, slots = put(atlas, ids)
      self.assertEqual(after.owner[slots].tolist(), ids)
      contents.append(sorted(zip(*(np.ravel(leaf).tolist() for leaf in jax.tree.leaves(after)))))
    self.assertEqual(contents[0], contents[1])
    self.assertEqual(contents[0], contents[2])

  def test_a_score_is_a_moving_average_of_the_mean_coefficient(self):
    atlas = small([3, -1, 5], score=[.5, .5, -.2], strikes=[0, 4, 2])
    after = anchors.update_scores(atlas, jnp.array([[1., 2.], [5., 5.], [-3., -1.]]), decay=0.75)
    np.testing.assert_allclose(after.score, [.75 * .5 + .25 * 1.5, 0, -.15 - .5])
    self.assertEqual(after.strikes.tolist(), [0, 0, 3])
    again = anchors.update_scores(after, jnp.array([[-9.], [-9.], [9.]]), decay=0.75)
    self.assertEqual(again.strikes.tolist(), [1, 0, 0])  # In a row.

  def test_the_worst_of_those_out_is_dropped_and_one_at_a_time(self):
    atlas = small([3, 5, 7, 9], score=[-.1, -.3, -.2, -.9], strikes=[4, 3, 5, 2])
    after = anchors.drop(atlas, 3)
    self.assertEqual(after.owner.tolist(), [3, -1, 7, 9])
    np.testing.assert_allclose(after.score, [-.1, 0, -.2, -.9])
    self.assertEqual(after.strikes.tolist(), [4, 0, 5, 2])
    self.assertEqual(anchors.drop(after, 3).owner.tolist(), [3, -1, -1, 9])
    toys.assert_close(anchors.drop(atlas, 6), atlas, rtol=0, atol=0)

  def test_shapes_never_change_and_one_program_serves_all_rounds(self):
    traces, slots = [], 3

    @toys.jit
    def round(atlas, w, ids, now, coefficients):
      traces.append(now)
      atlas, _ = anchors.add(atlas, {'w': w}, ids, now, eviction=anchors.worst)
      return anchors.drop(anchors.update_scores(atlas, coefficients, decay=0.5), 1)

    rng = np.random.default_rng(0)
    first = atlas = anchors.empty({'w': jnp.zeros(1)}, slots)
    occupied = set()
    for now in range(12):
      ids = jnp.asarray(rng.choice(6, 2, replace=False), jnp.int32)
      atlas = round(atlas, jnp.ones((2, 1)), ids, jnp.int32(now),
                    jnp.asarray(rng.normal(size=(slots, 1)), jnp.float32))
      chex.assert_trees_all_equal_shapes_and_dtypes(atlas, first)
      occupied.add(int((atlas.owner != anchors.EMPTY).sum()))
    self.assertLen(traces, 1)
    self.assertGreater(len(occupied), 1)

  def test_begins_empty(self):
    atlas = anchors.empty(params(), 4)
    self.assertEqual(atlas.owner.tolist(), [anchors.EMPTY] * 4)
    for leaf, like in zip(jax.tree.leaves(atlas.updates), jax.tree.leaves(params()), strict=True):
      self.assertEqual((leaf.shape, leaf.dtype), ((4, *like.shape), like.dtype))
      self.assertFalse(leaf.any())


@functools.cache
def scales():
  """Returns (atlas) -> the scales of its updates, {(lengths, coefficients): [slots, units]}."""
  kinds = [*itertools.product(LENGTHS, NAMES)]
  run = toys.jit(lambda atlas: [LENGTHS[lengths](atlas, unit_of(coefficients))
                                for lengths, coefficients in kinds])
  return lambda atlas: dict(zip(kinds, run(atlas), strict=True))


class SpanTest(parameterized.TestCase):

  def test_scales_equal_those_of_the_twin(self):
    for case in ({'count': 5}, {'count': 4}, {'count': 5, 'empty': (2,)},
                 {'count': 3, 'empty': (0, 1)}):
      atlas, twin = filled(**case)
      for (lengths, coefficients), got in scales()(atlas).items():
        wanted = np.stack([*reference.scales(twin, NAMES[coefficients], lengths).values()])
        self.assertEqual(wanted.shape, (SLOTS, anchors.count(unit_of(coefficients))))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, err_msg=f'{lengths}, {coefficients}')

  @parameterized.parameters('whole', 'layer')
  def test_all_scaled_updates_are_as_long_as_the_median(self, lengths):
    atlas, twin = filled(5, empty=(1,))
    unit = unit_of('layer')
    scale = scales()(atlas)[lengths, 'layer']
    scaled = jax.tree.map(lambda u, x: x * scale[:, u].reshape(-1, *[1] * (x.ndim - 1)), unit,
                          atlas.updates)
    groups = NAMES['global'] if lengths == 'whole' else NAMES['layer']
    for names in groups:
      before = [value for value in reference.lengths(twin, names).values() if value]
      after = [np.sqrt(sum(np.square(update[name]).sum() for name in names))
               for k, update in enumerate(twins(scaled)) if k != 1]
      self.assertGreater(np.std(before), 0.1)
      np.testing.assert_allclose(after, np.median(before), rtol=1e-5)

  def test_scales_of_an_atlas_without_any_length_are_zero(self):
    for atlas in (anchors.empty(params(), SLOTS), filled(2, empty=(0, 1))[0]):
      for (lengths, coefficients), scale in scales()(atlas).items():
        if lengths != 'none':
          np.testing.assert_array_equal(scale, np.zeros((SLOTS, len(NAMES[coefficients]))))

  def test_what_has_been_dropped_is_out_of_the_span(self):
    atlas, _ = filled(5)
    gone = anchors.drop(atlas._replace(
        score=atlas.score.at[3].set(-1), strikes=atlas.strikes.at[3].set(7)), 7)
    for scale in scales()(gone).values():
      np.testing.assert_array_equal(scale[3], 0)
      self.assertTrue((np.delete(scale, 3, axis=0) > 0).all())

  def test_a_merge_equals_that_of_the_twin(self):
    atlas, twin = filled(4)
    draw = lambda names: np.random.default_rng(3).normal(size=(SLOTS, len(names)))
    weights = {coefficients: draw(names) for coefficients, names in NAMES.items()}
    got = toys.jit(lambda weights: {
        coefficients: anchors.merge(params(), w, unit_of(coefficients), atlas.updates)
        for coefficients, w in weights.items()})(jax.tree.map(jnp.float32, weights))
    for coefficients, names in NAMES.items():
      wanted = reference.merge(toys.twin({'params': params()}), weights[coefficients], names, twin)
      toys.assert_close(toys.twin({'params': got[coefficients]}), wanted, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(('whole', 'global'), ('layer', 'layer'))
  def test_gradients_of_coefficients_equal_finite_differences(self, lengths, coefficients):
    federation = toys.hybrid()
    atlas, twin = filled(5, seed=4, empty=(1,))
    unit, names = unit_of(coefficients), NAMES[coefficients]
    x, y = federation.server.examples
    rows = objectives.labels(toys.perceptron()).rows

    def loss(c):
      merged = anchors.merge(params(), c * LENGTHS[lengths](atlas, unit), unit, atlas.updates)
      return rows({'params': merged}, x, y, ())[0].mean()

    start = toys.twin({'params': params()})
    scale = np.stack([*reference.scales(twin, names, lengths).values()])
    far = lambda c: two_layer.losses(
        reference.merge(start, c * scale, names, twin), *toys.central(federation)).mean()
    c = np.random.default_rng(5).normal(0, 0.3, (SLOTS, len(names))).astype(np.float32)
    slope, step = np.zeros(c.shape), 1e-6
    for place in np.ndindex(c.shape):
      move = np.zeros(c.shape)
      move[place] = step
      slope[place] = (far(c + move) - far(c - move)) / (2 * step)
    self.assertEqual(np.abs(slope[1]).max(), 0)  # That update is nil.
    self.assertGreater(np.abs(np.delete(slope, 1, axis=0)).min(), 1e-3)
    value, gradient = toys.jit(jax.value_and_grad(loss))(jnp.asarray(c))
    np.testing.assert_allclose(value, far(c), rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=2e-5, atol=2e-6)

  def test_units(self):
    self.assertEqual(set(jax.tree.leaves(unit_of('global'))), {0})
    self.assertEqual(anchors.count(unit_of('global')), 1)
    self.assertEqual(anchors.count(unit_of('layer')), 2)


class ProjectionTest(absltest.TestCase):
  WEIGHTS = np.array([[.5, -2, 9], [.7, 3, 9], [.4, 1, 9], [7, -8, 9]], np.float32)
  USABLE = np.array([[True] * 3] * 3 + [[False] * 3])

  def test_any_weights_stay(self):
    np.testing.assert_array_equal(anchors.any_weights(self.WEIGHTS, self.USABLE), self.WEIGHTS)

  def convex(self, weights, usable):
    """Returns convex weights [slots, units], found with many more slots that are empty."""
    padding = [(0, 50 - len(weights)), (0, 3 - weights.shape[1])]
    run = toys.jit(anchors.convex)
    padded = run(jnp.pad(weights, padding, constant_values=7), jnp.pad(usable, padding))
    return np.asarray(padded)[:len(weights), :weights.shape[1]]

  def test_convex_weights_are_the_nearest_on_the_simplex(self):
    got = self.convex(self.WEIGHTS, self.USABLE)
    np.testing.assert_allclose(got[3], 0, atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(got[:3, 0], [.5 - .2, .7 - .2, .4 - .2], atol=1e-6)
    np.testing.assert_allclose(got[:3, 1:], [[0, 1 / 3], [1, 1 / 3], [0, 1 / 3]], atol=1e-6)

  def test_what_is_on_the_simplex_stays(self):
    weights = jnp.array([[.25, 0.], [.75, 0.], [0., 1.], [0., 0.]])
    np.testing.assert_allclose(self.convex(weights, self.USABLE[:, :2]), weights, atol=1e-6)

  def test_empty_slots_may_be_many(self):
    usable = jnp.arange(50)[:, None] < 3
    weights = jnp.where(usable, jnp.array([[-9.], [-8.5], [-11.]])[jnp.arange(50) % 3], 7)
    np.testing.assert_allclose(
        self.convex(weights, usable)[:, 0], [.25, .75, *np.zeros(48)], atol=1e-6)

  def test_boxed_weights_are_clipped(self):
    got = anchors.boxed(0.6)(self.WEIGHTS, self.USABLE)
    np.testing.assert_allclose(got, [[.5, 0, .6], [.6, .6, .6], [.4, .6, .6], [0] * 3])


if __name__ == '__main__':
  absltest.main()
