"""Permutations of hidden units entry by entry, and the best of them by trying all."""

import itertools

import numpy as np


def draw(rng, symmetry):
  """Draws one of the permutations of each group that a network allows: {group: [n]}."""
  drawn, tied = {}, {}
  for group, count in symmetry.size.items():
    width = count // symmetry.runs[group]
    tie = next((groups for groups in symmetry.ties if group in groups), group)
    runs = tied.setdefault(tie, rng.permutation(symmetry.runs[group]))
    drawn[group] = np.concatenate([run * width + rng.permutation(width) for run in runs])
  return drawn


def move(x, groups, matching):
  """Moves the units of one array: of r n entries, entry c n + i comes from c n + matching[i]."""
  x = np.asarray(x)
  for axis, group in enumerate(groups):
    if group is not None:
      order = matching[group]
      source = [entry - entry % len(order) + order[entry % len(order)]
                for entry in range(x.shape[axis])]
      x = np.stack([x.take(entry, axis) for entry in source], axis)
  return x


def gains(tables, group, size, matching):
  """Returns what each place of a group gains by each unit, the other groups being matched.

  Args:
    tables: (array of a, array of b, groups of its axes) of each leaf.
    group: whose units.
    size: how many it has.
    matching: {group: [n]} of the other groups.
  """
  total = np.zeros((size, size))
  for a, b, groups in tables:
    for axis in range(len(groups)):
      if groups[axis] == group:
        moved = move(b, [g if i != axis else None for i, g in enumerate(groups)], matching)
        for i, j in itertools.product(range(size), repeat=2):
          of = lambda x, unit, axis=axis: np.take(x, range(unit, x.shape[axis], size), axis)
          total[i, j] += np.vdot(of(np.asarray(a, np.float64), i), of(moved, j))
  return total


def agreement(tables, matching):
  """Returns the inner product of all parameters of a and of b, whose units are moved."""
  return sum(np.vdot(np.asarray(a, np.float64), move(b, groups, matching))
             for a, b, groups in tables)


def allowed(count, runs):
  """Yields every permutation of `count` units that keeps each run together."""
  width = count // runs
  within = [*itertools.permutations(range(width))]
  for across, *inside in itertools.product(itertools.permutations(range(runs)), *[within] * runs):
    yield tuple(run * width + i for run, order in zip(across, inside, strict=True) for i in order)


def best(gains, runs):
  """Returns the largest sum that an allowed permutation reaches."""
  places = np.arange(len(gains))
  return max(gains[places, units].sum() for units in allowed(len(gains), runs))
