"""Merges of task vectors against those entry by entry: elections, counts and keys."""

import itertools

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from reference import flat_models, toys
from reference import task_vectors as reference

from hmm_jax.merging import sparsify, task_vectors
from hmm_jax.merging.ties import ties
from hmm_jax.types import InputError

KEY = toys.key(0)
ELECT = {'any': task_vectors.any_sign, 'majority': task_vectors.majority_sign}
REDUCE = {'total': task_vectors.total, 'mean': task_vectors.mean,
          'elected': task_vectors.mean_of_elected}


class MergeTest(absltest.TestCase):

  def test_equals_the_merge_entry_by_entry(self):
    models, base = flat_models.drawn(3, grain=2)
    deltas = flat_models.subtract(models, base)
    kinds = [*itertools.product(ELECT, REDUCE)]
    merge = toys.jit(lambda stacked, base, weights: [task_vectors.merge(
        stacked, base, KEY, weights=weights, sparsify=sparsify.everything(),
        elect=ELECT[elect], reduce=REDUCE[reduce], scale=0.7) for elect, reduce in kinds])
    for weights in ((0.5, 2.0, 1.0), (1, -1, 0.5)):
      got = merge(flat_models.stack(models), base, jnp.array(weights))
      wanted = [reference.merge(base, deltas, weights, *kind, 0.7) for kind in kinds]
      toys.assert_close(got, wanted, rtol=1e-5, atol=1e-5)

  def test_each_model_is_thinned_out_by_itself_with_a_key_of_its_own(self):
    models, base = flat_models.drawn(3)
    deltas = flat_models.subtract(models, base)
    highest = [max(x.max() for x in delta.values()) for delta in deltas]
    odd = lambda key: jax.random.key_data(key)[..., 0] % 2 == 1

    def limits(delta):
      self.assertEqual({name: x.shape for name, x in delta.items()}, flat_models.SHAPES)
      whole = jnp.max(jnp.array([x.max() for x in delta.values()]))
      return dict.fromkeys(delta, whole)

    rule = sparsify.Sparsifier(limits, lambda x, top, key: odd(key) & (x < top))
    got = toys.jit(lambda stacked, base: task_vectors.merge(
        stacked, base, KEY, weights=jnp.ones(3), sparsify=rule, elect=task_vectors.any_sign,
        reduce=task_vectors.total, scale=1.0))(flat_models.stack(models), base)
    wanted = [{} for _ in models]
    for number, name in enumerate(sorted(base)):
      luck = odd(jax.random.split(jax.random.fold_in(KEY, number), 3))
      for k, delta in enumerate(deltas):
        wanted[k][name] = np.where(luck[k] & (delta[name] < highest[k]), delta[name], 0)
    self.assertLen({any(x.any() for x in delta.values()) for delta in wanted}, 1)
    toys.assert_close(got, reference.merge(base, wanted, (1, 1, 1), 'any', 'total', 1.0),
                      rtol=1e-5, atol=1e-5)

  def test_a_base_of_another_shape_is_refused(self):
    models, base = flat_models.drawn(2)
    with self.assertRaisesRegex(InputError, r"got base\['bias'\] of shape \(1,\); expected \(5,\)"):
      ties()(flat_models.stack(models), {**base, 'bias': np.zeros(1)}, KEY)


if __name__ == '__main__':
  absltest.main()
