"""Base-(k+1) graphs: a short sequence of sparse mixing matrices that averages exactly."""

import numpy as np

from hmm_jax.types import InputError


def base_graphs(agents: int, degree: int) -> np.ndarray:
  """Returns the Base-(k+1) graphs, whose product is the exact average of any K agents.

  An agent without edges in a step is idle (our choice: the authors' code keeps averaging
  agents that are already equal, which sends models and does not change the product).

  Returns:
    [T, K, K] float64, symmetric and doubly stochastic, at most `degree` neighbors each.

  Raises:
    InputError: `degree` is below 1.

  Reference: Takezawa, Sato, Bao, Niwa, Yamada. Beyond Exponential Graph:
    Communication-Efficient Topologies for Decentralized Learning via Finite-time
    Convergence. NeurIPS 2023. arXiv:2305.11420.
  """
  if degree < 1:
    raise InputError(f'got degree={degree}; expected at least 1')
  most = min(degree + 1, agents)
  rough = _rough(agents, most)
  smooth = agents // rough
  grouped = ([np.kron(np.eye(smooth), matrix) for matrix in _simple_base(rough, most)]
             + [np.kron(matrix, np.eye(rough)) for matrix in _hyper_hypercube(smooth, most)])
  return np.stack(min(_simple_base(agents, most), grouped, key=len))


def _simple_base(agents, most):
  """Averages within a part per digit of K in base `most`, between parts, then within blocks."""
  if _rough(agents, most) == 1:
    return _hyper_hypercube(agents, most)
  parts, start, steps = [], 0, []
  for power in reversed([most**p for p in range(agents.bit_length()) if most**p <= agents]):
    if count := (agents - start) // power:
      parts.append((start, count, power))
      start += count * power

  def place(step, start, matrices):
    while len(steps) < step + len(matrices):
      steps.append(np.eye(agents))
    for i, matrix in enumerate(matrices):
      nodes = slice(start, start + len(matrix))
      steps[step + i][nodes, nodes] = matrix

  for start, count, power in parts:
    place(0, start, _hyper_hypercube(count * power, most))
  for step, (start, count, power) in enumerate(parts[:-1], start=len(steps)):
    place(step, start, [_even_out(count, power, agents - start)])
    for block in range(count):
      place(step + 1, start + block * power, _hyper_hypercube(power, most))
  return steps


def _even_out(count, power, agents):
  """Pairs each agent outside `count` blocks with one of every block; the means become equal."""
  edges = np.zeros((agents, agents))
  rest = np.arange(count * power, agents)
  for block in range(count):
    peers = block * power + np.arange(len(rest))
    edges[rest, peers] = edges[peers, rest] = power / agents
  return edges + np.diag(1 - edges.sum(axis=1))


def _hyper_hypercube(agents, most):
  """Averages in groups along each digit of a mixed-radix numbering."""
  matrices, inner = [], agents
  for size in _factors(agents, most):
    inner //= size
    group = np.kron(np.full((size, size), 1 / size), np.eye(inner))
    matrices.append(np.kron(np.eye(agents // len(group)), group))
  return matrices


def _factors(number, most):
  """Returns the shortest factorization into factors of at most `most`."""
  if number <= most:
    return [number] if number > 1 else []
  return min(([factor, *_factors(number // factor, most)]
              for factor in range(2, most + 1) if number % factor == 0), key=len)


def _rough(number, most):
  """Returns a number divided by all its prime factors of at most `most`."""
  for factor in range(2, most + 1):
    while number % factor == 0:
      number //= factor
  return number
