"""Conflict-aware merging against a twin task by task, and what it promises the tasks."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import conflict as reference
from reference import toys

from hmm_jax.merging import cat

EXAMPLES = toys.federation().examples
ROWS = jnp.array([[[0, 4, 9, 11]], [[3, 20, 30, 5]], [[7, 8, 1, 17]]])
project = toys.jit(cat.project, static_argnums=2)
mask = toys.jit(cat.mask, static_argnums=1)


def tasks(count, seed=0, inputs=6, outputs=12, rows=30):
  rng = np.random.default_rng(seed)
  x = [rng.normal(size=(rows, inputs)) @ rng.normal(size=(inputs, inputs)) for _ in range(count)]
  return rng.normal(size=(count, inputs, outputs)), x


def trim(deltas, inputs, directions, trade_off):
  grams = np.stack([x.T @ x / len(x) for x in inputs])
  return np.asarray(project(jnp.float32(deltas), jnp.float32(grams), directions, trade_off))


class ProjectTest(parameterized.TestCase):

  @parameterized.parameters((2, 1, 0.0), (3, 3, 1.0), (3, 3, 0.3))
  def test_equals_the_twin(self, count, directions, trade_off):
    deltas, inputs = tasks(count)
    wanted = reference.project(deltas, inputs, directions, trade_off)
    np.testing.assert_allclose(trim(deltas, inputs, directions, trade_off), wanted, rtol=1e-3,
                               atol=2e-3)

  def test_an_exemplar_forbids_a_direction_for_each_task_that_moves_it(self):
    # Two others move it, and of the two others each has one.
    deltas, inputs = tasks(3, rows=1)
    trimmed = trim(deltas, inputs, 3, 0.0)
    np.testing.assert_allclose(trimmed, reference.project(deltas, inputs, 3, 0.0), atol=2e-3)
    self.assertEqual(np.linalg.matrix_rank(trimmed - deltas, tol=1e-2).tolist(), [4, 4, 4])

  def test_what_is_left_disturbs_no_other_task_that_forbids_enough(self):
    deltas, inputs = tasks(2, inputs=3)
    trimmed = trim(deltas, inputs, 3, 0.0)
    for i, k in ((0, 1), (1, 0)):
      self.assertGreater(np.abs(inputs[k] @ deltas[i]).max(), 1)
      np.testing.assert_allclose(inputs[k] @ trimmed[i], 0, atol=1e-3)

  def test_one_direction_takes_away_most_of_the_harm(self):
    deltas, inputs = tasks(2)
    harm = lambda delta: np.square(inputs[1] @ delta).sum()
    values = np.linalg.eigvalsh((inputs[1] @ deltas[0]).T @ (inputs[1] @ deltas[0]))
    np.testing.assert_allclose(harm(deltas[0]) - harm(trim(deltas, inputs, 1, 0.0)[0]), values[-1],
                               rtol=1e-3)

  def test_tasks_of_the_same_features_have_no_conflict(self):
    deltas, inputs = tasks(3)
    np.testing.assert_allclose(trim(deltas, inputs[:1] * 3, 3, 1.0), deltas, rtol=1e-5)

  def test_a_direction_that_two_tasks_forbid_is_taken_out_once(self):
    deltas, inputs = tasks(3)
    deltas[1:] *= 1e-2  # So that both forbid the first task nearly the same.
    inputs = [inputs[0], inputs[1], inputs[1]]
    forbidden = [reference.forbidden(deltas, inputs, k, 1, 0.0) for k in (1, 2)]
    self.assertBetween(np.abs(np.abs(forbidden[0].T @ forbidden[1]) - 1).item(), 1e-12, 1e-5)
    one = deltas[0] - deltas[0] @ forbidden[0] @ forbidden[0].T
    np.testing.assert_allclose(trim(deltas, inputs, 1, 0.0)[0], one, atol=0.01)

  def test_task_vectors_of_nothing(self):
    deltas, inputs = tasks(3)
    self.assertEqual(np.abs(trim(0 * deltas, inputs, 3, 1.0)).max(), 0)


class MaskTest(parameterized.TestCase):

  @parameterized.parameters((3, 3, (2, 5)), (3, 20, (8,)))
  def test_equals_the_twin(self, count, directions, shape):
    deltas = np.float32(np.random.default_rng(count).normal(size=(count, *shape)))
    np.testing.assert_array_equal(mask(jnp.asarray(deltas), directions),
                                  reference.mask(deltas, directions))

  def test_of_two_tasks_each_loses_its_own_largest(self):
    got = mask(jnp.float32([[1, -5, 2, 3], [7, 0, 1, -2]]), 2)
    self.assertEqual(got.tolist(), [[1, 0, 2, 0], [0, 0, 1, 0]])


class MergeTest(parameterized.TestCase):

  def test_of_networks_equals_the_twin(self):
    network, rng = toys.norm(), np.random.default_rng(0)
    base = toys.start(toys.norm)
    stacked = jax.tree.map(
        lambda x: jnp.float32(x[None] + rng.uniform(size=(3, *x.shape))), base)
    merge = cat.cat(directions=1, scale=0.8, trade_off=0.5)
    got = merge(network, stacked, base, EXAMPLES, ROWS, toys.key(0))
    seen = toys.jit(jax.vmap(network.linear))(stacked, EXAMPLES.x[ROWS[:, 0]])

    def wanted(path, start, models):
      deltas = np.asarray(models, np.float64) - np.asarray(start)[None]
      *module, name = (step.key for step in path)
      if name == 'kernel':
        inputs = np.asarray(seen['/'.join(module)].inputs, np.float64)
        flat = deltas.reshape(3, -1, deltas.shape[-1])
        trimmed = np.stack(reference.project(flat, inputs, 1, 0.5)).reshape(deltas.shape)
      else:
        trimmed = np.stack(reference.mask(deltas, 1))
      return start + 0.8 * trimmed.sum(axis=0)

    toys.assert_close(got, jax.tree.map_with_path(wanted, base['params'], stacked['params']),
                      rtol=1e-3, atol=2e-3)


if __name__ == '__main__':
  absltest.main()
