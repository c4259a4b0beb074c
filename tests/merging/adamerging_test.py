"""AdaMerging against plain loops, on losses whose gradients are known, and of networks."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from reference import normalized, toys
from reference import soups as reference

from hmm_jax import tree
from hmm_jax.merging import adamerging
from hmm_jax.merging.task_arithmetic import task_arithmetic
from hmm_jax.tasks import classification

BATCHES = np.random.default_rng(9).normal(size=(20,)).astype(np.float32)


class AdamergingTest(absltest.TestCase):
  """The loss is half the squared distance to a goal that each batch stretches."""

  def test_learn_factors_equals_the_loop(self):
    models, goal, base = reference.drawn(3)
    run = toys.jit(lambda stacked, base, lr: {by: adamerging.learn_factors(
        stacked, base, reference.loss(goal), BATCHES, unit=unit, initial=0.3, lr=lr)
        for by, unit in reference.UNITS.items()})
    deltas = [{name: model[name] - base[name] for name in base} for model in models]
    for lr in (1e-3, 0.2):
      got = run(reference.stack(models), jax.tree.map(jnp.float32, base), lr)
      for by, unit in reference.UNITS.items():
        wanted = reference.adamerging(models, base, reference.gradient(goal), BATCHES, unit, 0.3,
                                      lr)
        np.testing.assert_allclose(got[by].weights, wanted, rtol=1e-3, atol=1e-4)
        # The interval ends at 0, and at 1 for parts of models.
        self.assertEqual(wanted.min() == 0, lr == 0.2)
        self.assertEqual(wanted.max() == 1, lr == 0.2 and by == 'parts')
        change = reference.mixture(deltas, wanted, unit)
        toys.assert_close(got[by].params, {name: base[name] + change[name] for name in base},
                          atol=1e-3)

  def test_models_keep_their_type(self):
    models = {'x': jnp.array([1, 2], jnp.bfloat16)}
    seen = []

    def value(params, batch):
      seen.append(params['x'].dtype)
      return params['x'].astype(jnp.float32) * batch

    got = jax.eval_shape(lambda models: adamerging.learn_factors(
        models, {'x': models['x'][0]}, value, BATCHES, unit={'x': 0}, initial=0.3, lr=0.1), models)
    self.assertEqual({got.params['x'].dtype, *seen}, {jnp.dtype(jnp.bfloat16)})

  def test_predicts_more_surely_and_never_reads_running_statistics(self):
    unsure = lambda params: classification.entropy(normalized.predict()(params)).mean()
    stacked, base = normalized.models(), normalized.base()
    learn = normalized.merge(adamerging.adamerging(lr=0.02, steps=30))
    first = task_arithmetic()(stacked['params'], base['params'], toys.key(0))
    got = learn(stacked)
    self.assertLess(unsure(got), unsure(first) - 0.07)
    other = {**stacked, 'batch_stats': tree.scale(9.0, stacked['batch_stats'])}
    toys.assert_close(learn(other), got, rtol=0, atol=0)


if __name__ == '__main__':
  absltest.main()
