"""The largest cluster of models by SciPy's complete linkage."""

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial import distance


def similarities(vectors):
  """Returns the cosines of vectors, 0 with one that is 0."""
  cosines = np.eye(len(vectors))
  for i, a in enumerate(vectors):
    for j, b in enumerate(vectors):
      if i != j and a.any() and b.any():
        cosines[i, j] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  return cosines


def labels(similarity, threshold):
  """Returns the first member of each one's cluster."""
  apart = distance.squareform(1 - similarity, checks=False)
  found = hierarchy.fcluster(hierarchy.complete(apart), 1 - threshold, 'distance')
  return [list(found).index(own) for own in found]


def largest(similarity, threshold=None):
  """Returns the members of the largest cluster, or everybody's numbers where all stand alone."""
  pairs = [(i, j) for i in range(len(similarity)) for j in range(i)]
  if threshold is None:
    threshold = np.mean([similarity[pair] for pair in pairs])
  found = labels(similarity, threshold)
  clusters = [[k for k, own in enumerate(found) if own == first] for first in dict.fromkeys(found)]
  mean = lambda members: np.mean([similarity[i, j] for i, j in pairs if {i, j} <= {*members}])
  size = max(map(len, clusters))
  if size == 1:
    return [*range(len(similarity))]
  return max((members for members in clusters if len(members) == size), key=mean)
