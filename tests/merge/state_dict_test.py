"""State dicts merged on held-out examples: each is read once, whatever the size of a batch."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax import tree
from hmm_jax.merge import state_dict
from hmm_jax.merge.evaluation import Bench
from hmm_jax.merging import OPERATORS
from hmm_jax.models import files
from hmm_jax.types import Examples

COUNT = 65


def bench(network, shape):
  """Returns held-out examples of which each counts, as its inputs have a size of their own."""
  rng = np.random.default_rng(0)
  sizes = rng.lognormal(sigma=1.5, size=(COUNT, *[1] * len(shape)))
  x = jnp.float32(sizes * rng.normal(size=(COUNT, *shape)))
  held_out = jnp.arange(COUNT)
  return Bench(network, Examples(x, jnp.int32(rng.integers(0, 3, COUNT))), held_out, held_out)


def merged(name, on, batch, **settings):
  """Merges three models."""
  noise = lambda x: jnp.float32(np.random.default_rng(x.size).normal(size=(3, *x.shape)))
  stacked = jax.tree.map(lambda x: x[None] + 0.3 * noise(x), toys.start(lambda: on.model))
  operator = OPERATORS[name]
  return state_dict.merge(
      operator, operator.make(**settings), files.flatten(stacked), files.flatten(tree.take(
          stacked, 0)), toys.key(0), on=on, shares=jnp.ones(3) / 3, batch=batch)


class HeldOutTest(parameterized.TestCase):

  @parameterized.parameters(
      ('fisher', toys.cnn, (4, 4, 1)), ('regmean', toys.cnn, (4, 4, 1)),
      ('pleas', toys.perceptron, (4,)))
  def test_batches_do_not_matter(self, name, network, shape):
    on = bench(network(), shape)
    wanted = merged(name, on, COUNT)
    for batch in (64, 13):
      for key, x in merged(name, on, batch).items():
        np.testing.assert_allclose(x, wanted[key], rtol=1e-4, atol=1e-4, err_msg=key)

  def test_statistics_are_those_of_all_examples(self):
    on = bench(toys.norm(), (4,))
    for batch in (64, 13, COUNT):
      got = merged('fisher', on, batch)
      for name, of in (('mean', np.mean), ('var', np.var)):
        np.testing.assert_allclose(got[f'batch_stats/trunk/BatchNorm_0/{name}'],
                                   of(on.examples.x, axis=0), rtol=1e-4, atol=1e-5)

  def test_a_soup_counts_each_example_once(self):
    on, scored = bench(toys.perceptron(), (4,)), []

    def watch(variables, x, *, mask=None, **mode):
      logits, rest = toys.perceptron().apply(variables, x, mask=mask, **mode)
      jax.debug.callback(lambda mask, x: scored.append(x[mask]), mask, x)
      return logits, rest

    on = on._replace(model=on.model._replace(apply=watch))
    merged('greedy_soup', on, 64)
    jax.effects_barrier()
    seen = np.concatenate(scored)
    wanted, times = np.unique(np.asarray(on.examples.x), axis=0, return_counts=True)
    got, reads = np.unique(seen, axis=0, return_counts=True)
    np.testing.assert_array_equal(got, wanted)
    self.assertEqual(set(reads), {6})  # Three models, and three means.
    self.assertEqual(set(times), {1})


if __name__ == '__main__':
  absltest.main()
