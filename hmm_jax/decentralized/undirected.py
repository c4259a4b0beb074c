"""Undirected graphs by name, or from a file."""

import math
from typing import NamedTuple

import networkx as nx
import numpy as np

from hmm_jax.types import InputError

# Draws of a random graph until one is connected.
RETRIES = 100


class _Settings(NamedTuple):
  name: str
  agents: int
  degree: int
  edge_probability: float
  seed: int


def undirected(name: str, agents: int, *, degree: int = 4, edge_probability: float = 0.3,
               seed: int = 0) -> np.ndarray:
  """Returns the adjacency matrix [K, K] of a connected graph of K agents: 0 or 1.

  Args:
    name: one of GRAPHS. 'edges:PATH' is a text file of edges, two agent numbers per line;
      '#' starts a comment.
    agents: K, at least 2.
    degree: neighbors of an agent in `regular`.
    edge_probability: of `erdos_renyi`.
    seed: of `erdos_renyi` and `regular`.

  Raises:
    InputError: a value out of range, a K for which there is no such graph, a bad file or a
      graph that is not connected.
  """
  draw = GRAPHS['edges:PATH' if name.startswith('edges:') else name]
  return nx.to_numpy_array(draw(_Settings(name, agents, degree, edge_probability, seed)))


def _torus(settings):
  """Returns the torus closest to a square, with sides of at least 2."""
  agents = settings.agents
  sides = [a for a in range(2, math.isqrt(agents) + 1) if agents % a == 0]
  if not sides:
    near = [str(n) for n in (agents - 1, agents + 1) if n > 3] or ['4']
    raise _impossible(settings, f'a product of two numbers above 1, such as {" or ".join(near)}')
  return nx.grid_2d_graph(sides[-1], agents // sides[-1], periodic=True)


def _hypercube(settings):
  power = (settings.agents - 1).bit_length()
  if settings.agents != 2**power:
    raise _impossible(settings, f'a power of 2, such as {2**(power - 1)} or {2**power}')
  return nx.hypercube_graph(power)


def _impossible(settings, wanted):
  return InputError(f'got topology={settings.name} with clients={settings.agents}; '
                    f'expected {wanted}')


def _erdos_renyi(settings):
  chance = settings.edge_probability
  if not 0 < chance <= 1:
    raise InputError(f'got edge_probability={chance}; expected above 0 and at most 1')
  return _draw_connected(settings, f'edge_probability={chance}', lambda rng:
                         nx.gnp_random_graph(settings.agents, chance, seed=rng))


def _regular(settings):
  agents, degree = settings.agents, settings.degree
  given = f'got degree={degree} with clients={agents}; expected'
  if not 1 <= degree < agents:
    raise InputError(f'{given} from 1 to {agents - 1}')
  if agents * degree % 2:
    raise InputError(f'{given} an even degree where clients is odd')

  def draw(rng):
    # Dense graphs are slow to draw; complements of uniform draws are uniform, too.
    if degree > (agents - 1) / 2:
      return nx.complement(nx.random_regular_graph(agents - 1 - degree, agents, seed=rng))
    return nx.random_regular_graph(degree, agents, seed=rng)

  return _draw_connected(settings, f'degree={degree}', draw)


def _draw_connected(settings, given, draw):
  rng = np.random.default_rng(settings.seed)
  for _ in range(RETRIES):
    if nx.is_connected(graph := draw(rng)):
      return graph
  raise InputError(f'got {given} with clients={settings.agents}; expected a connected '
                   f'graph, but {RETRIES} draws of graph_seed={settings.seed} gave none')


def _read_edges(settings):
  """Reads an edge list; networkx would skip a malformed line silently."""
  path, graph = settings.name.removeprefix('edges:'), nx.empty_graph(settings.agents)
  given = f'got topology={settings.name}'
  try:
    with open(path, encoding='utf-8') as file:
      lines = [line.partition('#')[0].split() for line in file]
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f'{given}; expected a text file of edges, but {error}') from error
  for number, edge in enumerate(lines, start=1):
    nodes = {int(node) for node in edge if node.isdecimal() and len(node) < 10} & set(graph)
    if edge and (len(edge) != 2 or len(nodes) != 2):
      raise InputError(f'{given} with {" ".join(edge)!r} in line {number}; expected two different '
                       f'numbers from 0 to {settings.agents - 1}, clients - 1')
    if edge:
      graph.add_edge(*nodes)
  if apart := set(graph) - nx.node_connected_component(graph, 0):
    raise InputError(f'{given}; expected a connected graph, but agent {min(apart)} is not '
                     'reached from 0')
  return graph


GRAPHS = {
    'ring': lambda s: nx.cycle_graph(s.agents),
    'torus': _torus,
    'hypercube': _hypercube,
    'star': lambda s: nx.star_graph(s.agents - 1),
    'complete': lambda s: nx.complete_graph(s.agents),
    'erdos_renyi': _erdos_renyi,
    'regular': _regular,
    'edges:PATH': _read_edges,
}
