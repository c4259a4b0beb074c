"""Task arithmetic: the scaled sum of the task vectors, added to the base."""

from collections.abc import Sequence

from hmm_jax.merging.sparsify import everything
from hmm_jax.merging.task_vectors import SCALE, WEIGHTS, any_sign, merge_by, total
from hmm_jax.registry import Operator
from hmm_jax.types import Merge


def task_arithmetic(*, scale: float = 0.3, weights: Sequence[float] | None = None) -> Merge:
  """Returns the scaled sum of the task vectors, as (stacked, base, key) -> params.

  Args:
    scale: any finite number; from 0.3 to 0.4 suits sums of several.
    weights: one finite number for each model; 1 each if None.

  Reference: Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi, Farhadi. Editing
    Models with Task Arithmetic. ICLR 2023. arXiv:2212.04089.
  """
  return merge_by(everything(), any_sign, total, scale, weights)


OPERATOR = Operator(
    'task_arithmetic', task_arithmetic, ('base',),
    {'scale': SCALE._replace(default=0.3), 'weights': WEIGHTS},
    summary='the base plus a scaled sum of task vectors',
    paper='Ilharco et al. ICLR 2023. arXiv:2212.04089')
