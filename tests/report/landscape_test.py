"""Tests of lines and polygons between models against NumPy, and of the experiment on a run."""

from functools import cache, partial
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized
import jax
import numpy as np
import pytest
from reference import softmax_regression, toys, two_layer

from hmm_jax import tree
from hmm_jax.client import mappers
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.merging.batch_norm.recalibrate import recalibrate
from hmm_jax.models import mlp
from hmm_jax.report import landscape
from hmm_jax.types import Examples, InputError

EXAMPLES = toys.federation().examples
ROWS = np.array([1, 3, 4, 6, 8, 9, 10, 20, 21, 30, 31])
X = np.asarray(EXAMPLES.x, np.float64)[ROWS]
Y = np.asarray(EXAMPLES.y)[ROWS]
ONE_BY_ONE = mappers.one_by_one()
PENTAGON = np.array([[0, 0], [2, -0.5], [3, 1], [1.5, 2.5], [0.2, 1.5]])


@cache
def models(network=toys.linear, count=4):
  """Returns models unlike each other."""
  keys = jax.random.split(toys.key(1), count)
  return tree.scale(3.0, toys.jit(jax.vmap(network().init))(keys))


def interpolate(a, b, network=toys.linear, examples=EXAMPLES, **settings):
  settings = {'mapper': ONE_BY_ONE, 'points': 7, **settings}
  return landscape.interpolate(network(), a, b, examples, ROWS, **settings)


def surface(stacked, network=toys.linear, **settings):
  settings = {'mapper': ONE_BY_ONE, 'resolution': 3, **settings}
  return landscape.surface(network(), stacked, EXAMPLES, ROWS, **settings)


def mixed(weights, stacked):
  """Returns a mixture as the NumPy twins name it."""
  return jax.tree.map(lambda *parts: np.tensordot(weights, np.stack(parts), axes=1),
                      *map(toys.twin, tree.unstack(stacked)))


def score(params, x=X):
  """Returns (loss, accuracy) of softmax regression, in NumPy."""
  correct = softmax_regression.logits(params, x).argmax(axis=1) == Y
  return softmax_regression.losses(params, x, Y).mean(), correct.mean()


def permuted(variables, order):
  """Returns a perceptron with its hidden units in another order: the same function."""
  trunk, head = variables['params']['trunk']['Dense_0'], variables['params']['head']
  return {'params': {
      'trunk': {'Dense_0': {'kernel': trunk['kernel'][:, order], 'bias': trunk['bias'][order]}},
      'head': {'kernel': head['kernel'][order], 'bias': head['bias']}}}


def inside(vertices, count=50):
  """Draws points inside a convex polygon, none near its boundary."""
  weights = np.random.default_rng(0).dirichlet(np.ones(len(vertices)), count)
  return (0.9 * weights + 0.1 / len(vertices)) @ vertices


class InterpolateTest(parameterized.TestCase):

  @parameterized.parameters(4, 512)
  def test_scores_every_point_of_the_line(self, batch):
    stacked = tree.take(models(), np.array([0, 1]))
    line = interpolate(*tree.unstack(stacked), batch=batch)
    np.testing.assert_allclose(line.position, np.arange(7) / 6)
    expected = [score(mixed([1 - t, t], stacked)) for t in np.arange(7) / 6]
    np.testing.assert_allclose(np.stack([line.loss, line.accuracy], axis=1), expected, rtol=1e-5)
    self.assertGreater(np.ptp(line.loss), 0.1)

  def test_a_convex_loss_has_no_barrier(self):
    for i, j in ((0, 1), (2, 3)):
      line = interpolate(tree.take(models(), i), tree.take(models(), j))
      self.assertEqual(line.barrier, 0)

  def test_the_barrier_is_the_largest_rise_over_the_chord(self):
    # Labels are what the first model says; the second is its permutation, less sure.
    a = tree.take(models(toys.perceptron), 0)
    b = permuted(a, np.array([3, 0, 4, 1, 2]))
    b['params']['head'] = tree.scale(0.5, b['params']['head'])
    logits, _ = toys.perceptron().apply(a, EXAMPLES.x)
    own = Examples(EXAMPLES.x, logits.argmax(-1))
    ends = np.array([own_loss(v, own) for v in (a, b)])
    expected = [own_loss_of(mixed([1 - t, t], tree.stack([a, b])), own) - [1 - t, t] @ ends
                for t in np.arange(7) / 6]
    line = interpolate(a, b, toys.perceptron, own)
    np.testing.assert_allclose(line.barrier, max(expected), rtol=1e-4)
    self.assertGreater(line.barrier, 0.1)
    self.assertGreater(ends[1] - ends[0], 0.05)

  def test_statistics_are_mixed_or_calibrated(self):
    a, b = (with_statistics(tree.take(models(toys.norm), k), k) for k in (0, 1))
    stacked = tree.stack([a, b])
    line = interpolate(a, b, toys.norm, points=3)
    at = lambda t: normalized(np.array([0.5, -1.0]) @ [1 - t, t], np.array([3.0, 0.5]) @ [1 - t, t])
    expected = [score(mixed([1 - t, t], stacked), at(t)) for t in (0, 0.5, 1)]
    np.testing.assert_allclose(np.stack([line.loss, line.accuracy], axis=1), expected, rtol=1e-4)

    batches = np.array([[0, 2, 5], [7, 11, 12]])
    calibrate = partial(recalibrate, toys.norm(), rows=batches)
    seen = np.asarray(EXAMPLES.x, np.float64)[batches]
    fresh = normalized(seen.mean(axis=1).mean(axis=0), seen.var(axis=1).mean(axis=0))
    expected = [score(mixed([1 - t, t], stacked), fresh)[0] for t in (0, 0.5, 1)]
    line = interpolate(a, b, toys.norm, points=3, calibrate=calibrate)
    np.testing.assert_allclose(line.loss, expected, rtol=1e-4)

  def test_all_lines_share_one_program(self):
    traces = []
    network = toys.linear()

    def apply(*args, **kwargs):
      traces.append(1)
      return network.apply(*args, **kwargs)

    counting = network._replace(apply=apply)
    members = tree.unstack(models())
    interpolate(members[0], members[1], lambda: counting)
    before = len(traces)
    interpolate(members[2], members[3], lambda: counting)
    self.assertGreater(before, 0)
    self.assertLen(traces, before)

  def test_one_mixture_at_a_time(self):
    network = mlp.mlp((500,), classes=3, input_shape=(4,))
    stacked = jax.eval_shape(jax.vmap(network.init), jax.random.split(toys.key(0), 3))
    program = landscape._score_mixtures.lower(
        network, ONE_BY_ONE, 512, None, stacked, np.ones((200, 3), np.float32), EXAMPLES, ROWS)
    needed = program.compile().memory_analysis().temp_size_in_bytes
    self.assertLess(needed, 20 * tree.nbytes(stacked))

  def test_bad_input(self):
    a, b = tree.take(models(), 0), tree.take(models(), 1)
    with self.assertRaisesRegex(InputError, 'got points=1; expected at least 2'):
      interpolate(a, b, points=1)
    with self.assertRaisesRegex(InputError, 'got no '):
      landscape.interpolate(toys.linear(), a, b, EXAMPLES, ROWS[:0], mapper=ONE_BY_ONE)


def own_loss(variables, examples):
  return own_loss_of(toys.twin(variables), examples)


def own_loss_of(params, examples):
  return two_layer.losses(params, X, np.asarray(examples.y)[ROWS]).mean()


def with_statistics(variables, k):
  """Gives a network that normalizes its inputs statistics of its own."""
  mean, variance = ((0.5, 3.0), (-1.0, 0.5))[k]
  return {**variables, 'batch_stats': {'trunk': {'BatchNorm_0': {
      'mean': np.full(4, mean, np.float32), 'var': np.full(4, variance, np.float32)}}}}


def normalized(mean, variance):
  # The scale of the network's BatchNorm: `models` multiplies every parameter by 3.
  return 3 * (X - mean) / np.sqrt(variance + 1e-5)


class BarycentricTest(parameterized.TestCase):

  @parameterized.parameters(3, 4, 5, 6, 9)
  def test_polygons_are_regular_and_counter_clockwise_from_the_top(self, count):
    corners = landscape.polygon(count) @ [1, 1j]
    np.testing.assert_allclose(corners, 1j * np.exp(2j * np.pi * np.arange(count) / count))

  @parameterized.parameters(3, 4, 5, 6, 9, 20)
  def test_corners_edges_and_center(self, count):
    vertices = landscape.polygon(count)
    np.testing.assert_array_equal(landscape.barycentric(vertices, vertices), np.eye(count))
    for share in (0.3, 0.5, 0.9):
      expected = share * np.eye(count) + (1 - share) * np.roll(np.eye(count), 1, axis=1)
      on_edges = landscape.barycentric(expected @ vertices, vertices)
      np.testing.assert_allclose(on_edges, expected, atol=1e-9)
      self.assertTrue((on_edges >= 0).all())
    np.testing.assert_allclose(
        landscape.barycentric(np.zeros((1, 2)), vertices), np.full((1, count), 1 / count))

  @parameterized.parameters(3, 4, 5, 8, 0)
  def test_are_convex_and_linearly_precise(self, count):
    vertices = landscape.polygon(count) if count else PENTAGON
    points = inside(vertices)
    weights = landscape.barycentric(points, vertices)
    self.assertTrue((weights > 0).all())
    np.testing.assert_allclose(weights.sum(axis=1), np.ones(50))
    np.testing.assert_allclose(weights @ vertices, points, atol=1e-12)

  def test_a_triangle_has_the_classical_ones(self):
    triangle = np.array([[0.2, 0.1], [2, -1], [1, 3]])
    points = inside(triangle)
    expected = np.linalg.solve(np.vstack([triangle.T, np.ones(3)]),
                               np.vstack([points.T, np.ones(50)])).T
    np.testing.assert_allclose(landscape.barycentric(points, triangle), expected)

  def test_a_square_has_bilinear_ones(self):
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    x, y = (points := inside(square)).T
    expected = np.stack([(1 - x) * (1 - y), x * (1 - y), x * y, (1 - x) * y], axis=1)
    np.testing.assert_allclose(landscape.barycentric(points, square), expected)

  def test_a_pentagon_has_those_of_cotangents(self):
    # The formula of Meyer et al., which only holds inside.
    def cotangent(at, a, b):
      u, v = a - at, b - at
      return (u * v).sum(-1) / np.abs(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])

    points = inside(PENTAGON)
    before, after = np.roll(PENTAGON, 1, axis=0), np.roll(PENTAGON, -1, axis=0)
    x = points[:, None]
    weights = (cotangent(PENTAGON, x, before) + cotangent(PENTAGON, x, after)) / (
        (x - PENTAGON)**2).sum(-1)
    np.testing.assert_allclose(landscape.barycentric(points, PENTAGON),
                               weights / weights.sum(axis=1, keepdims=True))

  def test_bad_input(self):
    with self.assertRaisesRegex(InputError, r'got point \[2.0, 0.5\]; expected one inside'):
      landscape.barycentric(np.array([[0, 0.5], [2, 0.5]]), landscape.polygon(4))
    with self.assertRaisesRegex(InputError, 'got 2 models; expected at least 3'):
      landscape.polygon(2)


class SurfaceTest(parameterized.TestCase):

  def test_scores_every_point_of_the_polygon(self):
    got = surface(models())
    expected = [score(mixed(weights, models())) for weights in got.weights]
    np.testing.assert_allclose(np.stack([got.loss, got.accuracy], axis=1), expected, rtol=2e-5)
    np.testing.assert_allclose(got.weights @ got.vertices, got.points, atol=1e-12)
    own = [score(toys.twin(v)) for v in tree.unstack(models())]
    corners = [np.flatnonzero(weights == 1).item() for weights in got.weights.T]
    np.testing.assert_allclose(got.loss[corners], [loss for loss, _ in own], rtol=1e-5)
    np.testing.assert_allclose(got.loss[0], score(mixed(np.full(4, 0.25), models()))[0], rtol=1e-5)

  @parameterized.parameters((3, 1), (4, 3), (6, 4))
  def test_rings_fill_the_polygon(self, count, resolution):
    vertices = landscape.polygon(count)
    got = surface(models(count=count), resolution=resolution)
    np.testing.assert_array_equal(got.vertices, vertices)
    # The distance from the edges, in units of the center's, is a whole share on every ring.
    depth = 1 - (got.points @ (vertices + np.roll(vertices, -1, axis=0)).T).max(axis=1) / (
        2 * np.cos(np.pi / count)**2)
    rings = np.round((1 - depth) * resolution)
    np.testing.assert_allclose(depth, 1 - rings / resolution, atol=1e-9)
    sizes = [(rings == r).sum() for r in range(resolution + 1)]
    self.assertEqual(sizes, [1] + [count * r for r in range(1, resolution + 1)])
    gaps = np.linalg.norm(got.points[:, None] - got.points, axis=-1)
    spacing = min(1, 2 * np.sin(np.pi / count)) / resolution
    self.assertGreater(gaps[gaps > 0].min(), 0.99 * spacing)
    self.assertLen(np.unique(got.points.round(9), axis=0), len(got.points))

  def test_an_edge_is_the_line_between_neighbors(self):
    got, members = surface(models(), resolution=4), tree.unstack(models())
    for i in range(4):
      j = (i + 1) % 4
      line = interpolate(members[i], members[j], points=5)
      edge = np.flatnonzero(got.weights[:, i] + got.weights[:, j] > 1 - 1e-9)
      edge = edge[np.argsort(got.weights[edge, j])]
      np.testing.assert_allclose(got.loss[edge], line.loss, rtol=1e-5)
      np.testing.assert_allclose(got.accuracy[edge], line.accuracy)

  def test_calibrates_every_point(self):
    stacked = models(toys.norm)
    batches = np.array([[0, 2, 5], [7, 11, 12]])
    got = surface(stacked, toys.norm, calibrate=partial(recalibrate, toys.norm(), rows=batches))
    seen = np.asarray(EXAMPLES.x, np.float64)[batches]
    fresh = normalized(seen.mean(axis=1).mean(axis=0), seen.var(axis=1).mean(axis=0))
    expected = [score(mixed(weights, stacked), fresh)[0] for weights in got.weights]
    np.testing.assert_allclose(got.loss, expected, rtol=1e-4)

  @parameterized.parameters('vmap-2', 'sharded-map')
  def test_mappers_agree(self, lift):
    toys.assert_close(surface(models(), mapper=toys.lifts()[lift]), surface(models()))

  def test_bad_input(self):
    with self.assertRaisesRegex(InputError, 'got 2 models; expected at least 3'):
      surface(tree.take(models(), np.array([0, 1])))
    with self.assertRaisesRegex(InputError, 'got resolution=0; expected at least 1'):
      surface(models(), resolution=0)
    with self.assertRaisesRegex(InputError, 'got no '):
      landscape.surface(toys.linear(), models(), EXAMPLES, ROWS[:0], mapper=ONE_BY_ONE)


ROOT = pathlib.Path(__file__).parents[2]
TINY = ('--config.plots=false',
        '--config.clients=4', '--config.participation=0', '--config.partition.kind=iid',
        '--config.rounds=1', '--config.eval_every=1', '--config.seeds=2',
        '--config.local.epochs=20', '--config.local.lr=0.5', '--config.mlp.hidden=(8,)')


@pytest.mark.slow
class ExperimentTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.folder = folder.name
    # A run of one model, with one of a model a client in it, and one that learns nothing.
    cls.together(['-m', 'hmm_jax.main', f'--workdir={cls.folder}/fedavg',
                  '--config.references=local', *TINY],
                 ['-m', 'hmm_jax.main', f'--workdir={cls.folder}/still',
                  '--config.algorithm=local', *TINY, '--config.seeds=1',
                  '--config.local.lr=1e-30'])
    cls.local = f'{cls.folder}/fedavg/references/local'

  @classmethod
  def together(cls, *commands):
    """Runs commands at once; returns (exit code, stdout, stderr) of each."""
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
    started = [subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True,
                                stderr=subprocess.PIPE, cwd=cls.folder, env=environment)
               for command in commands]
    outputs = [process.communicate(timeout=100) for process in started]
    return [(process.returncode, *out) for process, out in zip(started, outputs)]

  def study(self, *calls):
    script = str(ROOT / 'experiments' / 'landscape.py')
    return self.together(*([script, f'--workdir={workdir}', *flags] for workdir, *flags in calls))

  def files(self):
    return set(pathlib.Path(self.folder).rglob('*'))

  def test_corners_are_what_the_run_measured(self):
    (code, out, err), = self.study(
        (self.local, '--models=4', '--seed=1', '--split=validation', '--resolution=2'))
    self.assertEqual((code, err), (0, ''))
    with np.load(f'{self.local}/landscape.npz') as file:
      got = dict(file)
    measured = Workdir(self.local).read_metrics()[-1]
    self.assertEqual(measured['seed'], 1)
    corners = [np.flatnonzero(weights == 1).item() for weights in got['surface_weights'].T]
    np.testing.assert_allclose(
        got['surface_loss'][corners].mean(), measured['locals/validation/loss'], rtol=1e-5)
    self.assertAlmostEqual(got['surface_accuracy'][corners].max(),
                           measured['locals_max/validation/accuracy'])
    self.assertGreater(got['barrier'].max(), 0.01)
    for name, value in (('mean', got['barrier'].mean()), ('max', got['barrier'].max()),
                        ('2', got['surface_loss'][corners[2]]),
                        ('mean model', got['surface_loss'][0])):
      self.assertRegex(out, rf'│ {name} +│ {value:.4f} ')
    self.assertEqual(got['pairs'].tolist(), [[i, j] for i in range(4) for j in range(i + 1, 4)])
    self.assertEqual(got['line_loss'].shape, (6, 25))
    ends = got['surface_loss'][corners][got['pairs']]
    np.testing.assert_allclose(got['line_loss'][:, [0, -1]], ends, rtol=1e-5)
    rise = got['line_loss'] - (ends[:, :1] + got['line_position'] * (ends[:, 1:] - ends[:, :1]))
    np.testing.assert_allclose(got['barrier'], rise.max(axis=1), atol=1e-6)
    for name in ('interpolation.png', 'landscape.png'):
      self.assertTrue(os.path.exists(f'{self.local}/plots/{name}'), name)

  def test_bad_input_is_one_line_and_code_2(self):
    before = self.files()
    calls = [((f'{self.folder}/nowhere',), 'expected the folder of a run'),
             ((f'{self.folder}/fedavg', '--models=3'), 'got a run of fedavg'),
             ((f'{self.folder}/still', '--models=3'), 'needs gossip.final_merge=none')]
    for (code, _, err), (_, expected) in zip(self.study(*(call for call, _ in calls)), calls):
      self.assertEqual(code, 2, err)
      self.assertRegex(err, r'^hmm_jax: .*\n$')
      self.assertIn(expected, err)
    self.assertEqual(self.files(), before)


if __name__ == '__main__':
  absltest.main()
