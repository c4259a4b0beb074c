"""Tests of the mixing matrices against enumeration, closed forms and slow loops."""

import collections
import functools
import itertools
import pathlib
import tempfile
import time

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from reference import toys

from hmm_jax.decentralized import consensus, topology
from hmm_jax.decentralized.base_graphs import base_graphs
from hmm_jax.types import InputError

KEY = jax.random.key(0)
ANY = ('ring', 'star', 'complete', 'exponential', 'one_peer_exponential', 'base', 'matching',
       'pull')
CASES = (
    *((name, 5) for name in ANY), ('ring', 2), ('base', 2), ('matching', 2), ('pull', 2),
    ('base', 8), ('exponential', 8), ('matching', 8), ('torus', 8), ('hypercube', 8),
    ('erdos_renyi', 8), ('regular', 8))
NAMED = tuple((f'{name}_{size}', name, size) for name, size in CASES)
SYMMETRIC = ('ring', 'star', 'complete', 'base', 'matching', 'torus', 'hypercube', 'erdos_renyi',
             'regular')
WEIGHED = ('star', 'ring', 'erdos_renyi')
# A triangle with a tail, its degrees 2, 2, 3, 2, 1; also what the edge list tests write.
EDGES = ((0, 1), (1, 2), (0, 2), (2, 3), (3, 4))
RATE = 0.3


@functools.cache
def program(matrix):
  return toys.jit(jax.vmap(matrix, (0, 0, None)))


def matrices(graph, rate=1.0, keys=1):
  """Returns what a topology draws, [period * keys, K, K] float64."""
  steps = np.repeat(np.arange(graph.period), keys)
  return np.asarray(program(graph.matrix)(steps, jax.random.split(KEY, len(steps)), rate), float)


@functools.cache
def case(name, size, weights):
  """Returns a topology and its matrices."""
  graph = topology.topology(name, size, weights=weights, edge_probability=0.5)
  return graph, matrices(graph, keys=8 if name in ENUMERATE else 1)


def expected(draws):
  """Returns the gap, p and messages of [(probability, W), ...]."""
  size = len(draws[0][1])
  center = np.eye(size) - 1 / size
  mean = sum(chance * w for chance, w in draws)
  spread = sum(chance * w.T @ center @ w for chance, w in draws)
  gap = 1 - np.sort(np.abs(np.linalg.eigvals(mean)))[-2]
  messages = sum(chance * sent(w) for chance, w in draws)
  return gap, 1 - np.linalg.eigvalsh(spread).max(), messages


def sent(w):
  size = len(w)
  if np.allclose(w, 1 / size):
    return 2 * (size - 1) / size
  return sum(w[i, j] != 0 for i in range(size) for j in range(size) if i != j) / size


def half(peers):
  return (np.eye(len(peers)) + np.eye(len(peers))[list(peers)]) / 2


def matchings(agents):
  """Yields every matching that leaves at most one agent out, as tuples of pairs."""
  if len(agents) < 2:
    yield ()
    return
  if len(agents) % 2:
    for out in agents:
      yield from matchings([a for a in agents if a != out])
    return
  first, *others = agents
  for other in others:
    for rest in matchings([a for a in others if a != other]):
      yield ((first, other), *rest)


def all_matchings(size, rate):
  """Returns every matrix of `matching` with its probability."""
  found, draws = list(matchings(range(size))), []
  chance = rate * size / (size - size % 2)
  for pairs in found:
    for on in itertools.product((0, 1), repeat=len(pairs)):
      peers = np.arange(size)
      for (a, b), active in zip(pairs, on):
        if active:
          peers[a], peers[b] = b, a
      probability = np.prod([chance if active else 1 - chance for active in on]) / len(found)
      draws.append((probability, half(peers)))
  return draws


def all_pulls(size, rate):
  """Returns every matrix of `pull` with its probability."""
  draws = []
  for peers in itertools.product(range(size), repeat=size):
    stay = [i == j for i, j in enumerate(peers)]
    draws.append((np.prod([1 - rate if s else rate / (size - 1) for s in stay]), half(peers)))
  return draws


ENUMERATE = {'matching': all_matchings, 'pull': all_pulls}


class TopologyTest(parameterized.TestCase):

  def edge_list(self, text):
    """Returns the name of a topology in a new file."""
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / 'graph.txt').write_bytes(text if isinstance(text, bytes) else text.encode())
    return f'edges:{folder / "graph.txt"}'

  @parameterized.named_parameters(*NAMED)
  def test_mixes_by_what_it_claims(self, name, size):
    for weights in topology.WEIGHTS if name in WEIGHED else ['metropolis']:
      graph, w = case(name, size, weights)
      self.assertEqual((graph.name, graph.agents), (name, size))
      self.assertEqual(w.shape[1:], (size, size))
      self.assertGreaterEqual(w.min(), 0)
      np.testing.assert_allclose(w.sum(axis=2), 1, atol=1e-6)
      if graph.symmetric:
        np.testing.assert_array_equal(w, w.transpose(0, 2, 1))
      if graph.stochastic == 'doubly':
        np.testing.assert_allclose(w.sum(axis=1), 1, atol=1e-6)
      if weights != 'uniform':
        self.assertEqual(graph.stochastic, 'row' if name == 'pull' else 'doubly')
        if size > 3:  # one hop ahead is also one behind among two
          self.assertEqual(graph.symmetric, name in SYMMETRIC)

  def test_uniform_weights_of_an_irregular_graph_are_row_stochastic(self):
    graph = topology.topology('star', 5, weights='uniform')
    self.assertEqual((graph.symmetric, graph.stochastic), (False, 'row'))
    self.assertGreater(np.abs(matrices(graph)[0].sum(axis=0) - 1).max(), 0.5)

  @parameterized.named_parameters(*(case for case in NAMED if case[1] not in ENUMERATE))
  def test_figures_are_those_of_the_matrices(self, name, size):
    for weights in ('metropolis', 'uniform') if name in WEIGHED else ['metropolis']:
      graph, drawn = case(name, size, weights)
      self.assertEqual(graph.max_rate, 1)
      for rate in (1.0, RATE, 0.0):
        draws = [(rate / graph.period, w) for w in drawn] + [(1 - rate, np.eye(size))]
        gap, p, messages = expected(draws)
        np.testing.assert_allclose(graph.spectral_gap(rate), gap, atol=2e-6)
        np.testing.assert_allclose(graph.contraction(rate), p, atol=2e-6)
        np.testing.assert_allclose(graph.messages(rate), messages, atol=1e-6)

  @parameterized.product(name=('matching', 'pull'), size=(2, 4, 5), rate=(0.2, 1.0))
  def test_figures_of_random_exchanges_are_those_of_all_draws(self, name, size, rate):
    graph = topology.topology(name, size)
    rate = min(rate, graph.max_rate)
    gap, p, messages = expected(ENUMERATE[name](size, rate))
    np.testing.assert_allclose(graph.spectral_gap(rate), gap, atol=1e-6)
    np.testing.assert_allclose(graph.contraction(rate), p, atol=1e-6)
    np.testing.assert_allclose(graph.messages(rate), messages, atol=1e-6)

  @parameterized.parameters(
      ('matching', 5, 0.4), ('matching', 6, 1.0), ('pull', 4, 0.4))
  def test_draws_are_as_frequent_as_in_all_draws(self, name, size, rate):
    drawn, chances = collections.Counter(), collections.Counter()
    for w in matrices(topology.topology(name, size), rate, keys=4000):
      drawn[tuple(w.ravel())] += 1 / 4000
    for chance, w in ENUMERATE[name](size, rate):
      chances[tuple(w.ravel())] += chance
    self.assertContainsSubset(drawn, [w for w in chances if chances[w] > 0])
    for w, chance in chances.items():  # four standard errors, one draw for the rare
      error = 4 * max(chance * (1 - chance), 0) ** 0.5 / 4000 ** 0.5
      self.assertAlmostEqual(drawn[w], chance, delta=error + 1 / 4000)

  def test_an_odd_agent_is_left_out_of_a_matching(self):
    graph = topology.topology('matching', 5)
    self.assertEqual(graph.max_rate, 0.8)
    w = matrices(graph, 0.8, keys=50)
    np.testing.assert_array_equal((w == 0.5).sum(axis=(1, 2)), 8)
    np.testing.assert_array_equal(matrices(graph, 1.0, keys=50), w)
    for figure in (graph.spectral_gap, graph.contraction, graph.messages):
      np.testing.assert_allclose(figure(1.0), figure(0.8), atol=1e-6)
    self.assertEqual(topology.topology('matching', 6).max_rate, 1)
    self.assertEqual(topology.topology('pull', 5).max_rate, 1)

  @parameterized.parameters(
      ('matching', 16, 0.2, 0.1067), ('pull', 16, 0.2, 0.1126), ('ring', 16, 1.0, 0.099),
      ('exponential', 16, 1.0, 0.64), ('one_peer_exponential', 16, 1.0, 0.25))
  def test_contraction_in_numbers(self, name, size, rate, p):
    self.assertAlmostEqual(float(topology.topology(name, size).contraction(rate)), p, delta=5e-4)

  @parameterized.named_parameters(*((name, name) for name in (
      'ring', 'base', 'matching', 'pull')))
  def test_a_silent_round_is_the_identity(self, name):
    for w in matrices(topology.topology(name, 5), 0.0, keys=8):
      np.testing.assert_array_equal(w, np.eye(5))

  def test_everybody_is_silent_together(self):
    graph = topology.topology('ring', 6)
    ring, = matrices(graph)
    w = matrices(graph, RATE, keys=1000)
    on = (w == ring).all(axis=(1, 2))
    np.testing.assert_array_equal(w[~on], np.tile(np.eye(6), ((~on).sum(), 1, 1)))
    self.assertAlmostEqual(on.mean(), RATE, delta=0.06)
    self.assertTrue((matrices(graph, 1.0, keys=1000) == ring).all())

  def test_ring_is_thirds(self):
    near = np.abs(np.subtract.outer(range(6), range(6))) % 5 < 2
    np.testing.assert_array_equal(
        topology.topology('ring', 6).matrix(0, KEY), near * np.float32(1 / 3))

  def test_torus_is_as_square_as_can_be(self):
    w, = matrices(topology.topology('torus', 12))
    for i, j in np.ndindex(12, 12):
      (a, b), (c, d) = divmod(i, 4), divmod(j, 4)
      near = sorted(((a - c) % 3, (b - d) % 4)) in ([0, 0], [0, 1], [0, 2], [0, 3])
      near &= (b - d) % 4 != 2
      self.assertEqual(w[i, j] > 0, near, (i, j))
    self.assertEqual(np.count_nonzero(matrices(topology.topology('torus', 36))[0]), 36 * 5)

  def test_hypercube_joins_numbers_that_differ_in_a_bit(self):
    w, = matrices(topology.topology('hypercube', 8))
    for i, j in np.ndindex(8, 8):
      self.assertEqual(w[i, j], 0.25 if (i ^ j).bit_count() < 2 else 0)

  def test_star_and_complete(self):
    w, = matrices(topology.topology('star', 5))
    np.testing.assert_allclose(w[0], 0.2)
    np.testing.assert_allclose(w[1:, 1:], 0.8 * np.eye(4), atol=1e-7)
    np.testing.assert_allclose(matrices(topology.topology('complete', 5)), 0.2, atol=1e-7)

  def test_exponential_receives_from_powers_of_two_ahead(self):
    w, = matrices(topology.topology('exponential', 6))
    for i, j in np.ndindex(6, 6):
      self.assertEqual(w[i, j], 0.25 if (j - i) % 6 in (0, 1, 2, 4) else 0)

  def test_one_peer_exponential_takes_them_in_turn(self):
    graph = topology.topology('one_peer_exponential', 6)
    self.assertEqual(graph.period, 3)
    for step, hop in enumerate((1, 2, 4, 1, 2, 4)):
      w = graph.matrix(step, KEY)
      for i, j in np.ndindex(6, 6):
        self.assertEqual(w[i, j], 0.5 if (j - i) % 6 in (0, hop) else 0)

  @parameterized.parameters(2, 8, 32)
  def test_one_peer_exponential_averages_powers_of_two(self, size):
    graph = topology.topology('one_peer_exponential', size)
    self.assertEqual(2**graph.period, size)
    np.testing.assert_array_equal(np.linalg.multi_dot([np.eye(size), *matrices(graph)]), 1 / size)

  def test_one_peer_exponential_does_not_average_six(self):
    product = np.linalg.multi_dot(matrices(topology.topology('one_peer_exponential', 6)))
    self.assertGreater(np.abs(product - 1 / 6).max(), 0.05)

  @parameterized.parameters(
      (8, 1, 3), (5, 1, 5), (22, 4, 4), (6, 5, 1))
  def test_base_is_as_short_as_in_the_paper(self, size, degree, period):
    graph = topology.topology('base', size, degree=degree)
    self.assertEqual(graph.period, period)
    np.testing.assert_allclose(matrices(graph), base_graphs(size, degree), atol=1e-7)

  @parameterized.parameters(1, 4, 6, 9)
  def test_regular_has_the_degree(self, degree):
    size = 2 if degree == 1 else 10
    w, other = (matrices(topology.topology('regular', size, degree=degree, seed=seed))[0]
                for seed in (0, 1))
    np.testing.assert_array_equal(np.count_nonzero(w, axis=1), degree + 1)
    self.assertEqual(np.array_equal(w, other), degree in (1, 9))

  def test_a_dense_regular_graph_is_quick(self):
    start = time.perf_counter()
    w, = matrices(topology.topology('regular', 60, degree=57))
    self.assertLess(time.perf_counter() - start, 5)
    np.testing.assert_array_equal(np.count_nonzero(w, axis=1), 58)

  def test_erdos_renyi_draws_again_until_connected(self):
    edges, drawn = [], []
    for seed in range(20):
      graph = topology.topology('erdos_renyi', 8, edge_probability=0.3, seed=seed)
      self.assertGreater(graph.spectral_gap(), 0.01)
      drawn.append(graph.matrix(0, KEY))
      edges.append(graph.messages() * 8 / 2)
    self.assertFalse(any(np.array_equal(a, b) for a, b in itertools.pairwise(drawn)))
    self.assertBetween(np.mean(edges), 0.3 * 28, 0.3 * 28 + 3)  # connected ones have a few more
    np.testing.assert_array_equal(
        topology.topology('erdos_renyi', 8, seed=3).matrix(0, KEY), drawn[3])

  def test_weights_are_their_formulas(self):
    name = self.edge_list('\n'.join(f'{a} {b}' for a, b in EDGES))
    degrees = [2, 2, 3, 2, 1]
    formulas = {
        'metropolis': lambda i, j: 1 / (1 + max(degrees[i], degrees[j])),
        'laplacian': lambda i, j: 1 / 4,
        'uniform': lambda i, j: 1 / (1 + degrees[i]),
    }
    self.assertEqual(list(formulas), list(topology.WEIGHTS))
    for weights, formula in formulas.items():
      w = np.zeros((5, 5))
      for a, b in EDGES:
        w[a, b], w[b, a] = formula(a, b), formula(b, a)
      for i in range(5):
        w[i, i] = 1 - sum(w[i])
      graph = topology.topology(name, 5, weights=weights)
      np.testing.assert_allclose(matrices(graph)[0], w, atol=1e-7)
      self.assertEqual(graph.symmetric, weights != 'uniform')
      self.assertEqual(graph.messages(), 2)

  def test_edge_list_may_have_comments_and_repeat_itself(self):
    plain = topology.topology(self.edge_list('0 1\n1 2\n0 2\n2 3\n3 4'), 5)
    rich = topology.topology(self.edge_list('# a\n0 1\n\n2\t1 # b\n  0 2\n3 2\n4 3\n3 4\n'), 5)
    np.testing.assert_array_equal(matrices(plain), matrices(rich))

  def test_messages_are_those_of_what_is_drawn(self):
    for name in ('matching', 'pull'):
      graph = topology.topology(name, 7)
      counts = toys.jit(jax.vmap(consensus.messages))(matrices(graph, RATE, keys=2000))
      for count in counts:  # four standard errors are below 0.04
        self.assertAlmostEqual(float(count.mean()), float(graph.messages(RATE)), delta=0.02)

  @parameterized.named_parameters(*((name, name) for name in (
      'one_peer_exponential', 'matching')))
  def test_compiles_with_everything_traced(self, name):
    graph = topology.topology(name, 6)
    program = toys.jit(lambda step, key, rate: (
        graph.matrix(step, key, rate), graph.spectral_gap(rate), graph.contraction(rate),
        graph.messages(rate)))
    for step in range(4):
      key = jax.random.fold_in(KEY, step)
      w, *figures = program(step, key, RATE)
      self.assertEqual((w.dtype, w.shape), (jnp.float32, (6, 6)))
      np.testing.assert_array_equal(w, graph.matrix(step, key, RATE))
      eager = (graph.spectral_gap(RATE), graph.contraction(RATE), graph.messages(RATE))
      np.testing.assert_allclose(figures, eager, rtol=1e-5)
      np.testing.assert_array_equal(w, graph.matrix(step + graph.period, key, RATE))

  def test_describe(self):
    # The eigenvalues of the star less the constant: three of 0.8, one of 0.
    self.assertEqual(topology.describe(topology.topology('star', 5), 0.5), [
        ('topology', 'star at rate 0.5'), ('its matrices', 'symmetric, doubly stochastic'),
        ('spectral gap', '0.1000'), ('expected contraction p', '0.1800'),
        ('models an agent sends a round', '0.8'), ('share of AllReduce every round', '0.5000')])
    self.assertEqual(topology.describe(topology.topology('pull', 5))[1][1],
                     'not symmetric, row stochastic')

  @parameterized.parameters(
      ('web', 8, {}, 'got topology=web'), ('ring', 8, {'weights': 'even'}, 'got weights=even'),
      ('ring', 1, {}, 'got topology=ring with clients=1'),
      ('ring', 8, {'seed': -1}, 'got graph_seed=-1'),
      ('torus', 13, {}, 'got topology=torus with clients=13; .* 12 or 14'),
      ('torus', 2, {}, 'got topology=torus with clients=2; .* 4'),
      ('hypercube', 12, {}, 'got topology=hypercube with clients=12; .* 8 or 16'),
      ('erdos_renyi', 8, {'edge_probability': 0}, 'got edge_probability=0'),
      ('erdos_renyi', 8, {'edge_probability': float('nan')}, 'got edge_probability=nan'),
      ('erdos_renyi', 8, {'edge_probability': 0.01, 'seed': 2},
       'got edge_probability=0.01 with clients=8; .*graph_seed=2'),
      ('regular', 8, {'degree': 0}, 'got degree=0 with clients=8'),
      ('regular', 8, {'degree': 8}, 'got degree=8 with clients=8'),
      ('regular', 9, {'degree': 3}, 'got degree=3 with clients=9'),
      ('regular', 6, {'degree': 1}, 'got degree=1 with clients=6'),
      ('base', 8, {'degree': 0}, 'got degree=0'))
  def test_refuses(self, name, clients, settings, message):
    with self.assertRaisesRegex(InputError, message):
      topology.topology(name, clients, **settings)

  @parameterized.parameters(
      ('0 1\n# 2 3\n1', '1', 3), ('\n0 x', '0 x', 2),
      ('0 1 0.5', '0 1 0.5', 1), ('0 1\n2 3 # d', '2 3', 2), ('0 -1', '0 -1', 1),
      ('1 1', '1 1', 1), ('0,1', '0,1', 1))
  def test_refuses_lines_of_an_edge_list(self, text, line, number):
    name = self.edge_list(text)
    with self.assertRaisesRegex(InputError, f"got topology={name} with '{line}' in line {number}"):
      topology.topology(name, 3)

  def test_refuses_edge_lists(self):
    name = self.edge_list('0 1\n2 3\n1 4')
    with self.assertRaisesRegex(InputError, f'got topology={name}; .*agent 2'):
      topology.topology(name, 5)
    for name in ('edges:', 'edges:/no/such', self.edge_list(b'\xff\xfe')):
      with self.assertRaisesRegex(InputError, f'got topology={name}; expected a text file'):
        topology.topology(name, 5)


if __name__ == '__main__':
  absltest.main()
