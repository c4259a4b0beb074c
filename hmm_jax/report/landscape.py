"""Loss landscapes between models: along a line, and over a polygon.

Every point is a convex combination of models. One program maps over the points, so that
with a sequential mapper only one of these models is in memory at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from hmm_jax import tree
from hmm_jax.client import mappers
from hmm_jax.client.scoring import score_rows
from hmm_jax.types import Array, Examples, InputError, Mapper, Model, PyTree


class Interpolation(NamedTuple):
  """Scores on the straight line between two models, at P points."""

  position: np.ndarray  # [P], 0 at the first model and 1 at the second
  loss: np.ndarray  # [P]
  accuracy: np.ndarray  # [P], or the main metric of another task
  barrier: float


class Surface(NamedTuple):
  """Scores over a regular polygon with K models at its corners, at P points."""

  vertices: np.ndarray  # [K, 2]
  points: np.ndarray  # [P, 2]: the center first, the boundary last
  weights: np.ndarray  # [P, K], of the models at each point
  loss: np.ndarray  # [P]
  accuracy: np.ndarray  # [P], or the main metric of another task


def interpolate(model: Model, a: PyTree, b: PyTree, examples: Examples, rows: Array, *,
                mapper: Mapper, points: int = 25, batch: int = 512,
                calibrate: Callable | None = None) -> Interpolation:
  """Scores the models (1 - t) a + t b on the examples at `rows` [T], t from 0 to 1.

  The barrier is the largest increase of the loss over linear interpolation: the maximum over
  the points of L((1 - t) a + t b) - ((1 - t) L(a) + t L(b)). It is 0 at both ends, so never
  negative.

  Args:
    mapper: how points are mapped.
    points: P, both ends included.
    batch: examples scored at a time.
    calibrate: (variables, examples) -> variables, applied to every point, both ends
      included, such as partial(recalibrate, model, rows=...). A function seen before is not
      compiled again.

  Raises:
    InputError: fewer than 2 points, or no examples.

  Reference: Frankle, Dziugaite, Roy, Carbin. Linear Mode Connectivity and the Lottery
    Ticket Hypothesis. ICML 2020. arXiv:1912.05671. The barrier: Entezari, Sedghi, Saukh,
    Neyshabur. The Role of Permutation Invariance in Linear Mode Connectivity of Neural
    Networks. ICLR 2022. arXiv:2110.06296.
  """
  if points < 2:
    raise InputError(f'got points={points}; expected at least 2, the two models')
  position = np.linspace(0, 1, points)
  weights = np.stack([1 - position, position], axis=1)
  loss, accuracy = _score(model, tree.stack([a, b]), weights, examples, rows, mapper, batch,
                          calibrate)
  return Interpolation(position, loss, accuracy, float((loss - weights @ loss[[0, -1]]).max()))


def surface(model: Model, stacked: PyTree, examples: Examples, rows: Array, *,
            mapper: Mapper, resolution: int = 8, batch: int = 512,
            calibrate: Callable | None = None) -> Surface:
  """Scores combinations of K models on the examples at `rows` [T], over a polygon of the models.

  A point's mixing weights are its `barycentric` coordinates: an edge is the line between
  two models, the center the mean of all. The polygon shows two of the K - 1 dimensions
  between K models; the order of the models (counter-clockwise from the top) determines which.

  Args:
    mapper: how points are mapped.
    resolution: R, number of rings around the center, with 1 + K R (R + 1) / 2 points in all.
    batch: examples scored at a time.
    calibrate: as in `interpolate`, applied to the corners as well.

  Raises:
    InputError: fewer than 3 models or 1 ring, or no examples.
  """
  if resolution < 1:
    raise InputError(f'got resolution={resolution}; expected at least 1')
  vertices = polygon(tree.count(stacked))
  points = _rings(vertices, resolution)
  weights = barycentric(points, vertices)
  loss, accuracy = _score(model, stacked, weights, examples, rows, mapper, batch, calibrate)
  return Surface(vertices, points, weights, loss, accuracy)


def polygon(count: int) -> np.ndarray:
  """Returns the corners of a regular polygon, counter-clockwise from the top: [K, 2].

  Raises:
    InputError: fewer than 3 corners.
  """
  if count < 3:
    raise InputError(f'got {count} models; expected at least 3, the corners of a polygon')
  angles = np.pi / 2 + 2 * np.pi * np.arange(count) / count
  return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def barycentric(points: np.ndarray, vertices: np.ndarray) -> np.ndarray:
  """Returns the Wachspress coordinates of points in a convex polygon: [P, K].

  They are nonnegative, sum to 1 and give the point as a weighted mean of the corners. This is
  their polynomial form, which is also defined on the boundary: up to normalization, the
  coordinate of a corner is the area of the triangle with its neighbors times the areas of the
  triangles between the point and each edge that does not touch the corner.

  Args:
    points: [P, 2], inside or on the boundary.
    vertices: [K, 2], counter-clockwise.

  Raises:
    InputError: a point is outside.

  Reference: Wachspress. A Rational Finite Element Basis. Academic Press 1975. Meyer, Barr,
    Lee, Desbrun. Generalized Barycentric Coordinates on Irregular Polygons. Journal of
    Graphics Tools 2002.
  """
  after, before = np.roll(vertices, -1, axis=0), np.roll(vertices, 1, axis=0)
  corners = _cross(vertices - before, after - before)
  edges = _cross(vertices - points[:, None], after - points[:, None])  # [P, K]
  if (outside := (edges < -1e-9 * corners.max()).any(axis=1)).any():
    raise InputError(f'got point {points[outside][0].tolist()}; expected one inside the polygon')
  # Rounding may put a point on an edge slightly outside.
  edges = np.maximum(edges, 0)
  count = np.arange(len(vertices))
  touches = (count == count[:, None]) | (count == (count[:, None] - 1) % len(vertices))
  product = corners * np.where(touches, 1, edges[:, None]).prod(axis=2)
  return product / product.sum(axis=1, keepdims=True)


def _rings(vertices, resolution):
  """Returns the center and scaled copies of the polygon, with r points per edge on the r-th."""
  after = np.roll(vertices, -1, axis=0)
  points = [np.zeros((1, 2))]
  for r in range(1, resolution + 1):
    step = np.arange(r)[:, None, None]
    # Divided before the product, so that a share of 1 gives the corner exactly.
    ring = (r - step) / resolution * vertices + step / resolution * after
    points.append(ring.swapaxes(0, 1).reshape(-1, 2))
  return np.concatenate(points)


def _cross(a, b):
  return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _score(model, stacked, weights, examples, rows, mapper, batch, calibrate):
  """Returns mean loss and main metric for each of the weights [P, K]: float64 [P] both."""
  if not len(rows):
    raise InputError('got no rows; expected at least 1 example to score models on')
  means = jax.tree.map(lambda x: np.asarray(x, np.float64), _score_mixtures(
      model, mapper, batch, calibrate, stacked, weights.astype(np.float32), examples, rows))
  return means['loss'], model.task.metrics(means)[model.task.main]


# A module-level function, so that it is compiled once for all pairs of models.
@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _score_mixtures(model, mapper, batch, calibrate, stacked, weights, examples, rows):
  def work(shared, weights):
    stacked, examples, rows = shared
    variables = tree.mix(weights, stacked)
    if calibrate:
      variables = calibrate(variables, examples)
    scores = score_rows(model, mappers.one_by_one(), variables, examples, rows, batch)
    return jax.tree.map(lambda x: x.mean(axis=0), scores)

  return mapper.each(work, (stacked, examples, rows), weights)
