"""Topologies of decentralized learning, as mixing matrices.

Row i of a matrix W [K, K] is how agent i mixes the models it holds and receives:
x_i <- sum_j W_ij x_j. The expected contraction p measures how fast agents reach consensus:
E ||(I - J) W x||^2 <= (1 - p) ||(I - J) x||^2 with J = 11^T / K.

Reference: Koloskova, Loizou, Boreiri, Jaggi, Stich. A Unified Theory of Decentralized SGD
  with Changing Topology and Local Updates. ICML 2020. arXiv:2003.10422.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hmm_jax.decentralized.base_graphs import base_graphs
from hmm_jax.decentralized.consensus import allreduce, messages
from hmm_jax.decentralized.undirected import GRAPHS, undirected
from hmm_jax.types import InputError, Topology

# Edge weights of an undirected graph by its degrees [K]; the diagonal takes the remainder.
WEIGHTS = {
    'metropolis': lambda degrees: 1 / (1 + np.maximum.outer(degrees, degrees)),
    'laplacian': lambda degrees: 1 / (1 + degrees.max()),
    'uniform': lambda degrees: 1 / (1 + degrees)[:, None],
}


def topology(name: str, agents: int, *, weights: str = 'metropolis', degree: int = 4,
             edge_probability: float = 0.3, seed: int = 0) -> Topology:
  """Returns the topology of that name for K agents.

  Args:
    name: one of NAMES. 'edges:PATH' is a text file of undirected edges, two agent
      numbers per line; '#' starts a comment.
    agents: K.
    weights: one of WEIGHTS, for the undirected graphs; the exponential graphs, `base`,
      `matching` and `pull` have weights of their own.
    degree: neighbors of an agent in `regular`, their maximum in `base`.
    edge_probability: of `erdos_renyi`.
    seed: of the random graphs `erdos_renyi` and `regular`, drawn once.

  Raises:
    InputError: an unknown name, a value out of range, a K for which there is no such graph,
      a bad file or a graph that is not connected.

  Reference: Xiao, Boyd. Fast linear iterations for distributed averaging. Systems & Control
    Letters 2004 (`metropolis`, `laplacian`). Ying, Yuan, Chen, Hu, Pan, Yin. Exponential
    Graph is Provably Efficient for Decentralized Deep Training. NeurIPS 2021.
    arXiv:2110.13363 (`exponential`, `one_peer_exponential`).
  """
  kind = 'edges:PATH' if name.startswith('edges:') else name
  if kind not in NAMES:
    raise InputError(f'got topology={name}; expected one of {", ".join(NAMES)}')
  if weights not in WEIGHTS:
    raise InputError(f'got weights={weights}; expected one of {", ".join(WEIGHTS)}')
  if seed < 0:
    raise InputError(f'got graph_seed={seed}; expected a number of at least 0')
  if agents < 2:
    raise InputError(f'got topology={name} with clients={agents}; expected at least 2')
  if kind in EXCHANGES:
    return EXCHANGES[kind](agents)
  if kind in GRAPHS:
    edges = undirected(name, agents, degree=degree, edge_probability=edge_probability, seed=seed)
    return _repeat(name, [_weigh(edges, weights)])
  return _repeat(name, SEQUENCES[kind](agents, degree))


def describe(graph: Topology, rate: float = 1.0) -> list[tuple[str, str]]:
  """Returns a summary of a topology at a rate, as (name, figures) pairs."""
  sent = float(graph.messages(rate))
  return [
      ('topology', f'{graph.name} at rate {rate:g}'),
      ('its matrices', ('symmetric, ' if graph.symmetric else 'not symmetric, ')
       + f'{graph.stochastic} stochastic'),
      ('spectral gap', f'{float(graph.spectral_gap(rate)):.4f}'),
      ('expected contraction p', f'{float(graph.contraction(rate)):.4f}'),
      ('models an agent sends a round', f'{sent:.4g}'),
      ('share of AllReduce every round', f'{sent / allreduce(graph.agents):.4f}'),
  ]


def _hops(agents):
  """Returns a permutation matrix per hop 1, 2, 4, ... < K: ones at (i, i + hop modulo K)."""
  return [np.roll(np.eye(agents), 2**j, axis=1) for j in range((agents - 1).bit_length())]


def _weigh(edges, weights):
  """Returns the mixing matrix of weighted edges; the diagonal takes the remainder."""
  matrix = edges * WEIGHTS[weights](edges.sum(axis=1))
  return matrix + np.diag(1 - matrix.sum(axis=1))


def _repeat(name, matrices):
  """Returns the topology that cycles through matrices."""
  matrices = np.asarray(matrices)
  agents = matrices.shape[1]
  sequence = jnp.asarray(matrices, jnp.float32)
  values = np.linalg.eigvals(matrices.mean(axis=0))
  others = np.delete(values, np.abs(values - 1).argmin())
  spread = matrices.transpose(0, 2, 1) @ (np.eye(agents) - 1 / agents) @ matrices
  contraction = float(1 - np.linalg.eigvalsh(spread.mean(axis=0))[-1])
  sent = float(np.mean([messages(matrix)[0] for matrix in matrices]))

  def matrix(step, key, rate=1.0):
    on = jax.random.bernoulli(key, rate)
    return jnp.where(on, sequence[step % len(sequence)], jnp.eye(agents))

  def spectral_gap(rate=1.0):
    return 1 - jnp.hypot(1 - rate * (1 - others.real), rate * others.imag).max()

  return Topology(
      name, agents, matrix,
      symmetric=np.allclose(matrices, matrices.transpose(0, 2, 1), rtol=0, atol=1e-12),
      stochastic='doubly' if np.allclose(matrices.sum(axis=1), 1) else 'row',
      spectral_gap=spectral_gap, contraction=lambda rate=1.0: rate * contraction,
      messages=lambda rate=1.0: rate * sent, period=len(matrices))


def _matching(agents):
  """Returns random pairings; a pair averages with the probability that gives the rate.

  With odd K one agent per round is left out (our choice), so the rate is at most (K - 1) / K.
  """
  pairs = agents // 2
  max_rate = 2 * pairs / agents

  def chance(rate):
    return jnp.minimum(rate / max_rate, 1)

  def matrix(step, key, rate=1.0):
    order_key, coin_key = jax.random.split(key)
    a, b = jax.random.permutation(order_key, agents)[:2 * pairs].reshape(2, pairs)
    on = jax.random.bernoulli(coin_key, chance(rate), (pairs,))
    peers = jnp.arange(agents).at[a].set(jnp.where(on, b, a)).at[b].set(jnp.where(on, a, b))
    return _average_with(peers)

  # A matching is a projection, E[W^T W] = E[W], and keeps the mean: p is the spectral gap.
  def contraction(rate=1.0):
    return chance(rate) * max_rate * agents / (2 * (agents - 1))

  return Topology('matching', agents, matrix, symmetric=True, stochastic='doubly',
                  spectral_gap=contraction, contraction=contraction,
                  messages=lambda rate=1.0: chance(rate) * max_rate, max_rate=max_rate)


def _pull(agents):
  """Returns random pulls: each agent averages with another; the mean is not preserved."""
  def matrix(step, key, rate=1.0):
    hop_key, coin_key = jax.random.split(key)
    hops = jax.random.randint(hop_key, (agents,), 1, agents)
    on = jax.random.bernoulli(coin_key, rate, (agents,))
    return _average_with((jnp.arange(agents) + jnp.where(on, hops, 0)) % agents)

  def spectral_gap(rate=1.0):
    return rate * agents / (2 * (agents - 1))

  # For x of mean 0 and norm 1, E ||W x||^2 is q, of which (q - q^2) / K is in the new mean.
  def contraction(rate=1.0):
    q = 1 - spectral_gap(rate)
    return 1 - (q - (q - q**2) / agents)

  return Topology('pull', agents, matrix, symmetric=False, stochastic='row',
                  spectral_gap=spectral_gap, contraction=contraction,
                  messages=lambda rate=1.0: rate)


def _average_with(peers):
  """Returns the matrix in which each agent takes half of its own and half of its peer's."""
  return (jnp.eye(len(peers)) + jax.nn.one_hot(peers, len(peers))) / 2


# Random topologies: edges are drawn in every round.
EXCHANGES = {'pull': _pull, 'matching': _matching}
# Matrices to cycle through, by K and the degree.
SEQUENCES = {
    'exponential': lambda agents, _: [np.mean([np.eye(agents), *_hops(agents)], axis=0)],
    'one_peer_exponential': lambda agents, _: [
        (np.eye(agents) + hop) / 2 for hop in _hops(agents)],
    'base': base_graphs,
}
NAMES = (*EXCHANGES, *GRAPHS, *SEQUENCES)


class About(NamedTuple):
  """What a topology is, for lists; `needs` is what K must be, or a setting."""

  summary: str
  needs: str = ''
  paper: str = ''


_EXPONENTIAL = 'Ying et al. NeurIPS 2021. arXiv:2110.13363'
ABOUT = {
    'pull': About('each agent averages with one drawn at random, which need not average with it'),
    'matching': About('agents are paired at random in each round, and pairs average'),
    'ring': About('each agent has two neighbors'),
    'torus': About('a grid without borders, as square as can be',
                   'clients: a product of two numbers above 1'),
    'hypercube': About('neighbors differ in one binary digit of their numbers',
                       'clients: a power of 2'),
    'star': About('all agents have one neighbor, the same'),
    'complete': About('all are neighbors: a round averages all agents'),
    'erdos_renyi': About('each edge is there with a probability, drawn once',
                         'gossip.edge_probability'),
    'regular': About('a random graph in which all have equally many neighbors, drawn once',
                     'gossip.degree; clients or degree even'),
    'edges:PATH': About('the undirected edges in a text file, two agent numbers per line',
                        'a connected graph'),
    'exponential': About('each agent mixes those at distances 1, 2, 4, ... in the numbering',
                         paper=_EXPONENTIAL),
    'one_peer_exponential': About('one of these distances in each round, in turn',
                                  paper=_EXPONENTIAL),
    'base': About('a short sequence of sparse graphs that averages exactly, for any K',
                  'gossip.degree', 'Takezawa et al. NeurIPS 2023. arXiv:2305.11420'),
}
