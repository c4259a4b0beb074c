"""Distillation against its twin in NumPy, and who has a say."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import distil as reference
from reference import toys

from hmm_jax import tree
from hmm_jax.merging.data_free import distill, invert

COUNTS = np.array([[4, 0, 0], [2, 6, 0], [0, 2, 0], [0, 0, 0]])
STEPS = 6
INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(10, 4)), jnp.float32)


def teachers(network=toys.linear):
  stacked = jax.vmap(network().init)(jax.random.split(toys.key(1), 4))
  return jax.tree.map(lambda x: 2 * x, stacked)


def run(weights, *, network=toys.linear, optimizer=None, steps=STEPS, batch=10, temperature=1.0,
        keep=0.0, order=distill.jointly, augment=invert.as_they_are, each='map', inputs=INPUTS):
  teach = distill.distillation(
      network(), optimizer or optax.sgd(0.5), order=order, steps=steps, batch=batch,
      temperature=temperature, keep=keep, augment=augment, each=toys.lifts()[each].each)
  student = toys.start(network)
  return toys.jit(teach)(student, teachers(network), jnp.float32(weights), inputs, toys.key(2))


def assert_like_the_twin(got, weights, *, x=INPUTS, temperature=1.0, keep=0.0):
  """Compares with the twin's student and losses; `weights` are those of every step."""
  twins = [toys.twin(one) for one in tree.unstack(teachers())]
  student, losses = reference.distil(
      toys.twin(toys.start(toys.linear)), twins, weights, np.float64(x), lr=0.5,
      temperature=temperature, keep=keep)
  for name, value in toys.twin(got[0]).items():
    np.testing.assert_allclose(value, student[name], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got[1], losses, rtol=1e-4, atol=1e-5)


class DistilTest(parameterized.TestCase):

  @parameterized.parameters((1.0, 0.0, 'map'), (3.0, 0.0, 'sharded-map'), (2.0, 0.7, 'vmap-0'))
  def test_equals_the_twin(self, temperature, keep, each):
    weights = distill.by_counts(COUNTS)
    got = run(weights, temperature=temperature, keep=keep, each=each)
    assert_like_the_twin(got, [np.asarray(weights)] * STEPS, temperature=temperature,
                         keep=keep)

  def test_in_turn(self):
    weights = np.asarray(distill.equally(COUNTS[[0, 3, 1, 2]]))
    only = lambda k: np.where(np.arange(4)[:, None] == k, weights, 0)
    got = run(weights, order=distill.in_turn)
    assert_like_the_twin(got, [only(k) for k in (0, 0, 2, 2, 3, 3)])

  def test_without_a_teacher_the_student_stays(self):
    student, losses = run(np.zeros((4, 3)), keep=0.5)
    toys.assert_close(student, toys.start(toys.linear), rtol=0, atol=0)
    self.assertEqual(losses.tolist(), [0] * STEPS)

  def test_inputs_are_augmented_anew_at_every_step(self):
    def shift(key, x):
      return x + 50 * jax.random.uniform(key)

    weights = distill.equally(COUNTS)
    losses = run(weights, augment=shift, optimizer=optax.sgd(0.0))[1]
    self.assertLen(set(np.asarray(losses).tolist()), STEPS)
    still = run(weights, optimizer=optax.sgd(0.0))[1]
    np.testing.assert_allclose(still, still[0], rtol=1e-5)

  def test_minibatches_read_every_input_once_an_epoch(self):
    weights = distill.equally(COUNTS)
    some = run(weights, optimizer=optax.sgd(0.0), batch=5, steps=2)[1]
    whole = run(weights, optimizer=optax.sgd(0.0), steps=1)[1]
    np.testing.assert_allclose(some.mean(), whole[0], rtol=1e-5)
    self.assertNotAlmostEqual(some[0], some[1], places=4)

  def test_statistics_stay_and_the_student_learns(self):
    weights = distill.equally(COUNTS)
    student, losses = run(weights, network=toys.norm, steps=40)
    start = toys.start(toys.norm)
    toys.assert_close(student['batch_stats'], start['batch_stats'], rtol=0, atol=0)
    toys.assert_far(student['params'], start['params'])
    self.assertLess(losses[-1], losses[0] / 2)


class WeightsTest(parameterized.TestCase):

  def test_by_counts(self):
    np.testing.assert_allclose(
        distill.by_counts(COUNTS), [[4 / 6, 0, 0], [2 / 6, 6 / 8, 0], [0, 2 / 8, 0], [0, 0, 0]])

  def test_equally(self):
    np.testing.assert_allclose(distill.equally(COUNTS), np.repeat([[1 / 3]] * 3 + [[0]], 3, 1))
    self.assertFalse(distill.equally(np.zeros((4, 3))).any())

  def test_a_mixture_is_normalized_and_never_undefined(self):
    said = jnp.array([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], [[0.1, 0.1, 0.8], [0.0, 0.0, 1.0]]])
    weights = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    np.testing.assert_allclose(
        distill.mixture(said, weights), [[0.5 / 0.55, 0.05 / 0.55, 0], [1 / 3] * 3], rtol=1e-6)

  @parameterized.parameters(1, 2, 3, 7)
  def test_everybody_in_turn_has_an_equal_share_of_the_steps(self, count):
    weights = np.ones((count + 1, 2)) * (np.arange(count + 1) > 0)[:, None]
    spoke = [np.asarray(distill.in_turn(weights, step, 3 * count)) for step in range(3 * count)]
    who = [np.flatnonzero(w.any(axis=1)).tolist() for w in spoke]
    self.assertEqual(who, [[1 + step // 3] for step in range(3 * count)])


if __name__ == '__main__':
  absltest.main()
