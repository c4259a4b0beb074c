"""Task vectors against merges entry by entry, and what is kept at every edge."""

import itertools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import task_vectors as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.merging import sparsify, task_vectors
from hmm_jax.types import InputError

SHAPES = {'conv': (2, 2, 3, 4), 'bias': (5,), 'scalar': (), 'wide': (3, 7)}
KEY = toys.key(0)
WEIGHTS = (0.5, 2.0, 1.0)
ELECT = {'any': task_vectors.any_sign, 'majority': task_vectors.majority_sign}
REDUCE = {'total': task_vectors.total, 'mean': task_vectors.mean,
          'elected': task_vectors.mean_of_elected}


def drawn(count, *, seed=0, grain=None):
  """Returns models and their start; with a grain, many task vectors' entries are as large."""
  rng = np.random.default_rng(seed)
  base = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
  if grain:
    base = {name: np.float32(np.round(x)) for name, x in base.items()}
  noise = lambda shape: rng.integers(-grain, grain + 1, shape) if grain else rng.normal(size=shape)
  models = [{name: np.float32(x + noise(x.shape)) for name, x in base.items()}
            for _ in range(count)]
  return models, base


def stack(models):
  return tree.stack([jax.tree.map(jnp.asarray, model) for model in models])


def close(got, wanted, rtol=1e-5, atol=1e-5):
  toys.assert_close(got, wanted, rtol=rtol, atol=atol)


def merger(*merges):
  """Returns what each of several merges gives, by one program: (models, base) -> list."""
  run = toys.jit(lambda stacked, base: [merge(stacked, base, KEY) for merge in merges])
  return lambda models, base: run(stack(models), base)


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


class SparsifyTest(parameterized.TestCase):

  def test_largest_equal_those_of_a_sorted_list(self):
    kinds = [*itertools.product([0.0, 1 / 75, 0.03, 0.2, 0.5, 1.0], sparsify.SCOPES)]
    keep = keeper(*[sparsify.largest(*kind) for kind in kinds])
    for grain in (None, 3):
      (model,), base = drawn(1, grain=grain)
      delta = reference.subtract(model, base)
      close(keep(delta), [reference.largest(delta, *kind) for kind in kinds], rtol=0, atol=0)

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
    close(keep(delta), [delta] * 3 + [nothing] * 3, rtol=0, atol=0)

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
      (model,), base = drawn(1, grain=grain)
      delta = reference.subtract(model, base)
      close(keep(delta), [reference.middle(delta, *one) for one in shares], rtol=0, atol=0)

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

  @parameterized.parameters(
      (lambda: sparsify.largest(1.5, 'model'), 'got density=1.5; expected from 0 to 1'),
      (lambda: sparsify.largest(float('nan'), 'model'), 'got density=nan'),
      (lambda: sparsify.largest(0.2, 'row'), 'got scope=row; expected one of model, tensor'),
      (lambda: sparsify.random_share(-0.1), 'got density=-0.1'),
      (lambda: sparsify.middle(-1, 0), 'got smallest=-1'),
      (lambda: sparsify.middle(0, 2), 'got largest=2'),
      (lambda: sparsify.middle(0.7, 0.4), 'got largest=0.4 with smallest=0.7; expected at most 1'))
  def test_shares_that_cannot_be(self, make, message):
    with self.assertRaisesRegex(InputError, message):
      make()


class MergeTest(parameterized.TestCase):

  def test_equals_the_merge_entry_by_entry(self):
    models, base = drawn(3, grain=2)
    deltas = [reference.subtract(model, base) for model in models]
    kinds = [*itertools.product(ELECT, REDUCE)]
    merge = toys.jit(lambda stacked, base, weights: [task_vectors.merge(
        stacked, base, KEY, weights=weights, sparsify=sparsify.everything(),
        elect=ELECT[elect], reduce=REDUCE[reduce], scale=0.7) for elect, reduce in kinds])
    for weights in (WEIGHTS, (1, -1, 0.5)):
      got = merge(stack(models), base, jnp.array(weights))
      close(got, [reference.merge(base, deltas, weights, *kind, 0.7) for kind in kinds])

  def test_each_model_is_thinned_out_by_itself_with_a_key_of_its_own(self):
    models, base = drawn(3)
    deltas = [reference.subtract(model, base) for model in models]
    highest = [max(x.max() for x in delta.values()) for delta in deltas]
    odd = lambda key: jax.random.key_data(key)[..., 0] % 2 == 1

    def limits(delta):
      self.assertEqual({name: x.shape for name, x in delta.items()}, SHAPES)
      whole = jnp.max(jnp.array([x.max() for x in delta.values()]))
      return dict.fromkeys(delta, whole)

    rule = sparsify.Sparsifier(limits, lambda x, top, key: odd(key) & (x < top))
    got = toys.jit(lambda stacked, base: task_vectors.merge(
        stacked, base, KEY, weights=jnp.ones(3), sparsify=rule, elect=task_vectors.any_sign,
        reduce=task_vectors.total, scale=1.0))(stack(models), base)
    wanted = [{} for _ in models]
    for number, name in enumerate(sorted(base)):
      luck = odd(jax.random.split(jax.random.fold_in(KEY, number), 3))
      for k, delta in enumerate(deltas):
        wanted[k][name] = np.where(luck[k] & (delta[name] < highest[k]), delta[name], 0)
    self.assertLen({any(x.any() for x in delta.values()) for delta in wanted}, 1)
    close(got, reference.merge(base, wanted, (1, 1, 1), 'any', 'total', 1.0))

  def test_task_arithmetic(self):
    models, base = drawn(3)
    got = merger(*[task_vectors.task_arithmetic(scale=0.4, weights=weights)
                   for weights in (None, WEIGHTS)])(models, base)
    close(got, [{name: base[name] + 0.4 * sum(
        w * (model[name] - base[name]) for w, model in zip(weights, models)) for name in base}
        for weights in ((1, 1, 1), WEIGHTS)])

  def test_ties(self):
    defaults = {'density': 0.2, 'scope': 'model', 'scale': 1.0, 'weights': None}
    settings = [defaults, defaults | dict(density=0.0), defaults | dict(density=1.0, scale=0.9),
                defaults | dict(scope='tensor'), defaults | dict(density=0.4, weights=WEIGHTS)]
    merge = merger(*[task_vectors.ties(**own) for own in settings])
    for grain in (None, 2):
      models, base = drawn(3, grain=grain)
      wanted = []
      for density, scope, scale, weights in (own.values() for own in settings):
        deltas = [reference.largest(reference.subtract(model, base), density, scope)
                  for model in models]
        wanted.append(reference.merge(
            base, deltas, weights or (1, 1, 1), 'majority', 'elected', scale))
      close(merge(models, base), wanted)

  def test_in_ties_nobody_wins_a_tie(self):
    models = [{'a': np.float32([3, 3, 3])}, {'a': np.float32([-3, -1, 0])}]
    (got,) = merger(task_vectors.ties(density=1.0))(models, {'a': np.zeros(3, np.float32)})
    self.assertEqual(got['a'].tolist(), [0, 3, 3])

  def test_dare(self):
    models, base = drawn(3)
    kept = [{} for _ in models]
    for number, name in enumerate(sorted(base)):
      keys = jax.random.split(jax.random.fold_in(KEY, number), 3)
      for k, model in enumerate(models):
        kept[k][name] = jax.random.bernoulli(keys[k], 0.6, model[name].shape)
    self.assertLen({str(mask) for mask in jax.device_get(kept)}, 3)
    deltas = [jax.tree.map(lambda x, keep: x * keep / 0.6, reference.subtract(model, base), mask)
              for model, mask in zip(models, kept)]
    settings = dict(density=0.6, scale=0.5, weights=WEIGHTS)
    got = merger(task_vectors.dare(**settings), task_vectors.dare_ties(**settings))(models, base)
    close(got, [reference.merge(base, deltas, WEIGHTS, 'any', 'total', 0.5),
                reference.merge(base, deltas, WEIGHTS, 'majority', 'elected', 0.5)])

  @parameterized.parameters(task_vectors.dare, task_vectors.dare_ties)
  def test_nothing_may_be_kept_by_chance(self, make):
    got = make(density=0.0)({'a': jnp.ones((2, 1))}, {'a': jnp.zeros(1)}, KEY)
    self.assertEqual(got['a'].tolist(), [0])

  def test_breadcrumbs(self):
    models, base = drawn(3)
    (got,) = merger(task_vectors.breadcrumbs(
        smallest=0.4, largest=0.1, scale=0.5, weights=WEIGHTS))(models, base)
    deltas = [reference.middle(reference.subtract(model, base), 0.4, 0.1) for model in models]
    close(got, reference.merge(base, deltas, WEIGHTS, 'any', 'total', 0.5))

  @parameterized.parameters(
      (dict(scale=float('inf')), 'got scale=inf; expected a finite number'),
      (dict(scale=float('nan')), 'got scale=nan'))
  def test_scales_that_cannot_be(self, settings, message):
    for make in (task_vectors.task_arithmetic, task_vectors.ties, task_vectors.dare,
                 task_vectors.dare_ties, task_vectors.breadcrumbs):
      with self.assertRaisesRegex(InputError, message):
        make(**settings)

  @parameterized.parameters(((1.0, 2.0),), ((1.0, 2.0, 3.0, 4.0),), ((1.0, float('nan'), 1.0),))
  def test_weights_that_cannot_be(self, weights):
    models, base = drawn(3)
    with self.assertRaisesRegex(InputError, r'got weights=\[.*expected 3 finite numbers'):
      task_vectors.task_arithmetic(weights=weights)(stack(models), base, KEY)

  def test_a_start_of_another_shape(self):
    models, base = drawn(2)
    with self.assertRaisesRegex(
        InputError, r"got base\['bias'\] of shape \(1,\); expected \(5,\), as in the models"):
      task_vectors.ties()(stack(models), {**base, 'bias': np.zeros(1)}, KEY)


if __name__ == '__main__':
  absltest.main()
