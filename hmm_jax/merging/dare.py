"""DARE: task arithmetic or TIES with random entries of the task vectors, rescaled."""

from collections.abc import Sequence

from hmm_jax.merging.sparsify import random_share
from hmm_jax.merging.task_vectors import (
    SCALE,
    WEIGHTS,
    any_sign,
    majority_sign,
    mean_of_elected,
    merge_by,
    total,
)
from hmm_jax.registry import Operator, Setting
from hmm_jax.types import Merge


def dare(*, density: float = 0.1, scale: float = 0.3,
         weights: Sequence[float] | None = None) -> Merge:
  """Returns DARE: task arithmetic with random entries of the task vectors, rescaled.

  Args:
    density: probability that an entry is kept: 1 minus the drop rate.
    scale: scaling factor of the merged task vector.
    weights: one finite number for each model; 1 each if None.

  Reference: Yu, Yu, Yu, Huang, Li. Language Models are Super Mario: Absorbing Abilities from
    Homologous Models as a Free Lunch. ICML 2024. arXiv:2311.03099.
  """
  return merge_by(random_share(density), any_sign, total, scale / (density or 1), weights)


def dare_ties(*, density: float = 0.1, scale: float = 1.0,
              weights: Sequence[float] | None = None) -> Merge:
  """Returns TIES with the random entries of `dare` instead of the largest."""
  return merge_by(random_share(density), majority_sign, mean_of_elected,
                scale / (density or 1), weights)


DENSITY = Setting(0.1, 'probability that an entry is kept', at_least=0, at_most=1)
DARE = Operator(
    'dare', dare, ('base',),
    {'density': DENSITY, 'scale': SCALE._replace(default=0.3), 'weights': WEIGHTS},
    summary='task arithmetic with random entries, rescaled',
    paper='Yu et al. ICML 2024. arXiv:2311.03099')
DARE_TIES = Operator(
    'dare_ties', dare_ties, ('base',), {'density': DENSITY, 'scale': SCALE, 'weights': WEIGHTS},
    summary='TIES with random entries, rescaled',
    paper='Yu et al. ICML 2024. arXiv:2311.03099')
