"""Breadcrumbs: task arithmetic without the smallest and the largest entries."""

from collections.abc import Sequence

from hmm_jax.merging.sparsify import middle
from hmm_jax.merging.task_vectors import SCALE, WEIGHTS, any_sign, merge_by, total
from hmm_jax.registry import Operator, Setting
from hmm_jax.types import Merge


def breadcrumbs(*, smallest: float = 0.85, largest: float = 0.01, scale: float = 0.3,
                weights: Sequence[float] | None = None) -> Merge:
  """Returns Breadcrumbs: task arithmetic without each tensor's smallest and largest entries.

  Args:
    smallest, largest: shares that are dropped (their defaults are our choice: the paper tunes
      them).
    scale: scaling factor of the merged task vector.
    weights: one finite number for each model; 1 each if None.

  Reference: Davari, Belilovsky. Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse
    Masks. ECCV 2024. arXiv:2312.06795.
  """
  return merge_by(middle(smallest, largest), any_sign, total, scale, weights)


OPERATOR = Operator(
    'breadcrumbs', breadcrumbs, ('base',),
    {'smallest': Setting(
         0.85, 'share of the entries to drop, smallest first', at_least=0, at_most=1),
     'largest': Setting(
         0.01, 'share of the entries to drop, largest first', at_least=0, at_most=1),
     'scale': SCALE._replace(default=0.3), 'weights': WEIGHTS},
    summary='task arithmetic without the smallest and the largest entries',
    paper='Davari, Belilovsky. ECCV 2024. arXiv:2312.06795')
