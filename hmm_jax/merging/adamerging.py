"""AdaMerging: coefficients of task vectors, learned by entropy minimization."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.merging import atlas
from hmm_jax.merging.batches import masked_mean, take
from hmm_jax.merging.delta import deltas, wide
from hmm_jax.merging.learning import (
  BY,
  LR,
  adam,
  cast,
  check,
  logits_of,
  minibatches,
  unit_of,
)
from hmm_jax.merging.soups import Soup
from hmm_jax.registry import Operator, Setting
from hmm_jax.types import InputError, PyTree


def learn_factors(stacked: PyTree, base: PyTree, loss: Callable, batches: PyTree, *, unit: PyTree,
               initial: float, lr: float) -> Soup:
  """Returns theta_0 + sum_k lambda_ku delta_k, with lambda in [0, 1] learned by Adam.

  After each step lambda is clipped to the interval (the authors clip it inside the merge, where
  the gradient vanishes).

  Args:
    stacked: leaves [K, ...].
    base: theta_0.
    loss: (params, batch) -> scalar: mean `entropy` of predictions without labels.
    batches: [T, ...], one per step.
    unit: of each leaf.
    initial: lambda before the first step.
    lr: of Adam.

  Reference: Yang, Wang, Shen, Liu, Guo, Wang, Tao. AdaMerging: Adaptive Model Merging for
    Multi-Task Learning. ICLR 2024. arXiv:2310.02575.
  """
  origin, updates = jax.tree.map(wide, base), deltas(stacked, base)
  mix = lambda c: cast(atlas.merge(origin, c, unit, updates), base)
  c = jnp.full((tree.count(stacked), atlas.count(unit)), initial)
  c = adam(lambda c, batch: loss(mix(c), batch), c, batches, lr, lambda c: jnp.clip(c, 0, 1))
  return Soup(mix(c), c)


def adamerging(*, by: str = 'layer', initial: float = 0.3, lr: float = 1e-3,
               steps: int = 500) -> Callable:
  """Returns AdaMerging, by the entropy of predictions on examples whose labels are not read.

  Args:
    by: which parameters share a lambda, one of `UNITS`.
    initial: lambda before the first step, from 0 to 1.
    lr: of Adam.
    steps: of one batch each.
  """
  check(by, lr, 'steps', steps)
  if not 0 <= initial <= 1:
    raise InputError(f'got initial={initial}; expected a number from 0 to 1')

  def apply(model, stacked, base, examples, rows, key):
    entropy, logits = model.task.entropy, logits_of(model, stacked)
    if entropy is None:
      raise InputError(f'got adamerging with task={model.task.name}; expected another operator, as '
                       'its predictions have no entropy')

    def loss(params, own):
      batch = take(examples, own)
      return masked_mean(entropy(logits(params, batch)), batch.mask)

    return learn_factors(
        stacked['params'], base['params'], loss, minibatches(key, rows, steps),
        unit=unit_of(by, model, stacked), initial=float(initial), lr=lr).params

  return apply


OPERATOR = Operator(
    'adamerging', adamerging, ('base', 'network', 'data'),
    {'by': BY._replace(default='layer'),
     'initial': Setting(0.3, 'initial coefficient', at_least=0, at_most=1),
     'lr': LR._replace(default=1e-3), 'steps': Setting(500, 'steps of one minibatch', at_least=1)},
    summary='task arithmetic with a coefficient per layer, learned by entropy minimization',
    paper='Yang et al. ICLR 2024. arXiv:2310.02575')
