"""Operators that match units first: what was only in another order comes back as it was."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax import tree
from hmm_jax.merging import aligned
from hmm_jax.merging.alignment import weight_matching
from hmm_jax.merging.alignment.permutation import permute
from hmm_jax.types import InputError

EXAMPLES = toys.federation().examples
ROWS = jnp.array([[0, 4, 9, 11], [3, 20, 30, 5], [7, 8, 1, 17]])
OPERATORS = {'weights': aligned.weight_matching, 'activations': aligned.activation_matching,
             'pleas': aligned.pleas, 'pleas-weights': lambda: aligned.pleas(match='weights')}


@cache
def planted():
  """Returns a perceptron, and it with its hidden units in another order."""
  model, first = toys.perceptron(), toys.start(toys.perceptron)
  [group] = model.symmetry().size
  other = permute(model.symmetry(), first, {group: jnp.array([3, 0, 4, 1, 2])})
  return first, tree.stack([first, other])


def merge(name, stacked):
  go = OPERATORS[name]()
  return toys.jit(lambda stacked, key: go(toys.perceptron(), stacked, None, EXAMPLES, ROWS, key))(
      stacked, toys.key(0))


class AlignedTest(parameterized.TestCase):

  @parameterized.parameters(*OPERATORS)
  def test_models_in_another_order_are_one(self, name):
    first, stacked = planted()
    toys.assert_close(merge(name, stacked), first['params'], rtol=1e-3, atol=1e-4)
    plain = tree.mix(np.full(2, 0.5, np.float32), stacked['params'])
    toys.assert_far(plain, first['params'], least=0.1)

  @parameterized.parameters(*OPERATORS)
  def test_one_model_stays(self, name):
    first, _ = planted()
    toys.assert_close(merge(name, tree.repeat(first, 1)), first['params'], rtol=1e-3, atol=1e-4)

  def test_rows_may_be_of_each_model(self):
    first, stacked = planted()
    go = aligned.pleas()
    own = jnp.stack([ROWS, ROWS + 1])
    got = toys.jit(lambda stacked: go(toys.perceptron(), stacked, None, EXAMPLES, own,
                                      toys.key(0)))(stacked)
    toys.assert_close(got, first['params'], rtol=1e-3, atol=1e-4)

  def test_pleas_is_no_mean(self):
    first, _ = planted()
    noise = lambda x: x + 0.5 * jnp.asarray(
        np.random.default_rng(x.size).normal(size=x.shape), jnp.float32)
    stacked = tree.stack([first, jax.tree.map(noise, first)])
    mean = tree.mix(np.full(2, 0.5, np.float32), weight_matching.align_by_weights(
        toys.key(0), toys.perceptron().symmetry(), stacked)['params'])
    toys.assert_close(merge('weights', stacked), mean)
    toys.assert_far(merge('pleas-weights', stacked), mean, least=0.01)

  @parameterized.parameters(
      (dict(match='names'), '^got match=names; expected one of weights, activations$'),
      (dict(ridge=0.0), '^got ridge=0.0; expected a finite number above 0'))
  def test_refuses(self, settings, message):
    with self.assertRaisesRegex(InputError, message):
      aligned.pleas(**settings)


if __name__ == '__main__':
  absltest.main()
