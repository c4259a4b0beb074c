"""TIES: task vectors are trimmed, signs elected, and the entries that agree averaged."""

from collections.abc import Sequence

from hmm_jax.merging import task_vectors
from hmm_jax.merging.sparsify import SCOPES, largest
from hmm_jax.merging.task_vectors import (
  SCALE,
  WEIGHTS,
  majority_sign,
  mean_of_elected,
  merge_by,
)
from hmm_jax.registry import Operator, Setting
from hmm_jax.types import Array, Key, Merge, PyTree


def ties(*, density: float = 0.2, scope: str = 'model', scale: float = 1.0,
         weights: Sequence[float] | None = None) -> Merge:
  """Returns TIES: the mean of the largest entries that have the sign of their sum.

  Args:
    density: share of the entries that are kept.
    scope: 'model' to rank all entries together, as in the paper; 'tensor' as in some tools.
    scale: scaling factor of the merged task vector.
    weights: one finite number for each model; 1 each if None.

  Reference: Yadav, Tam, Choshen, Raffel, Bansal. TIES-Merging: Resolving Interference When
    Merging Models. NeurIPS 2023. arXiv:2306.01708.
  """
  return merge_by(largest(density, scope), majority_sign, mean_of_elected, scale, weights)


def merge(stacked: PyTree, base: PyTree, key: Key, *, weights: Array, density: float) -> PyTree:
  """Merges by TIES with the weights [K] as an array, which may be traced."""
  return task_vectors.merge(
      stacked, base, key, weights=weights, scale=1.0, sparsify=largest(density, 'model'),
      elect=majority_sign, reduce=mean_of_elected)


OPERATOR = Operator(
    'ties', ties, ('base',),
    {'density': Setting(0.2, 'share of the entries that are kept', at_least=0, at_most=1),
     'scope': Setting('model', 'entries that are ranked together', choices=SCOPES),
     'scale': SCALE, 'weights': WEIGHTS},
    summary='the largest entries of task vectors that agree in sign',
    paper='Yadav et al. NeurIPS 2023. arXiv:2306.01708')
