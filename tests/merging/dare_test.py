"""DARE against its twin entry by entry: what is kept by chance, and its scale."""

from absl.testing import absltest
import jax
import numpy as np
from reference import flat_models, toys
from reference import task_vectors as reference

from hmm_jax.merging.dare import dare, dare_ties

SETTINGS = dict(density=0.6, scale=0.5, weights=(0.5, 2.0, 1.0))


def kept(models, key):
  """Returns the task vectors' entries that are kept: masks of each model."""
  masks = [{} for _ in models]
  for number, name in enumerate(sorted(models[0])):
    keys = jax.random.split(jax.random.fold_in(key, number), len(models))
    for k, model in enumerate(models):
      masks[k][name] = jax.random.bernoulli(keys[k], 0.6, model[name].shape)
  return jax.device_get(masks)


class DareTest(absltest.TestCase):

  def test_dare_and_dare_ties_equal_the_twin_for_each_key(self):
    models, base = flat_models.drawn(3)
    deltas = flat_models.subtract(models, base)
    run = toys.jit(lambda stacked, key: [make(**SETTINGS)(stacked, base, key)
                                         for make in (dare, dare_ties)])
    for key in (toys.key(0), toys.key(1)):
      masks = kept(models, key)
      self.assertLen({str(mask) for mask in masks}, 3)
      left = [jax.tree.map(lambda x, keep: x * keep / 0.6, *of) for of in zip(deltas, masks)]
      wanted = [reference.merge(base, left, SETTINGS['weights'], *kind, 0.5)
                for kind in (('any', 'total'), ('majority', 'elected'))]
      toys.assert_close(run(flat_models.stack(models), key), wanted, rtol=1e-5, atol=1e-5)

  def test_at_density_0_the_base_is_left_and_at_1_everything(self):
    models = [{'a': np.float32([1, 4])}, {'a': np.float32([2, -1])}]
    base = {'a': np.zeros(2, np.float32)}
    got = flat_models.merger(*[make(density=density, scale=1.0) for make in (dare, dare_ties)
                               for density in (0.0, 1.0)])(models, base)
    self.assertEqual([one['a'].tolist() for one in got], [[0, 0], [3, 3], [0, 0], [1.5, 4]])


if __name__ == '__main__':
  absltest.main()
