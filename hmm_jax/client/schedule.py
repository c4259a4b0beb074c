"""Schedules of the clients' learning rate, over the rounds of a run and the steps of a round.

They scale what the optimizer does, so that any optimizer may have one.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.registry import Setting
from hmm_jax.types import Array, InputError, Moment

# The factor at a share p of the way from the first to the last; the last one is `end`.
KINDS = {
    'constant': lambda p, end: jnp.ones_like(p),
    'linear': lambda p, end: 1 - (1 - end) * p,
    'cosine': lambda p, end: end + (1 - end) * (1 + jnp.cos(jnp.pi * p)) / 2,
    'exponential': lambda p, end: end**p,
    # In two equal drops, as usual for ResNets: with an end of 0.01 each is by a factor of 10.
    'step': lambda p, end: jnp.where(p < 0.5, 1, jnp.where(p < 0.75, end**0.5, end)),
}

SETTINGS = {
    'schedule': Setting('constant', 'the learning rate over the rounds, from lr to lr_end of it',
                        choices=KINDS),
    'warmup_rounds': Setting(0, 'first rounds, in which the learning rate rises to lr',
                             at_least=0),
    'step_schedule': Setting('constant', "the learning rate over a client's steps in a round, "
                             "from the round's to lr_end of it", choices=KINDS),
    'warmup_steps': Setting(0, "a round's first steps, in which the learning rate rises",
                            at_least=0),
    'lr_end': Setting(0.01, 'the learning rate at the end of a schedule, as a share of that at its '
                      'beginning', above=0, at_most=1),
}


def factor(kind: str, warmup: int, end: float) -> Callable:
  """Returns (done, total) -> the factor of the learning rate after `done` of `total` steps.

  In the warm-up of w steps it is 1/(w + 1), 2/(w + 1), ...; the step after that has the factor 1,
  the last one `end`.
  """

  def at(done: Array, total: Array | int) -> Array:
    share = (done - warmup) / jnp.maximum(total - 1 - warmup, 1)
    ramp = jnp.minimum((done + 1) / (warmup + 1), 1)
    return ramp * KINDS[kind](jnp.clip(share, 0, 1), end)

  return at


def goes_by_round(settings: Any) -> bool:
  """Tells whether the settings `local` have a schedule over rounds."""
  return settings.schedule != 'constant' or settings.warmup_rounds > 0


def is_used(settings: Any) -> bool:
  """Tells whether the settings `local` have any schedule."""
  return (goes_by_round(settings) or settings.step_schedule != 'constant'
          or settings.warmup_steps > 0)


def check(settings: Any, rounds: int):
  """Raises InputError if the warm-up of the settings `local` is longer than the run."""
  if settings.warmup_rounds >= rounds:
    raise InputError(f'got local.warmup_rounds={settings.warmup_rounds} with rounds={rounds}; '
                     'expected less warm-up than rounds')


def of_settings(optimizer: optax.GradientTransformation, settings: Any,
                rounds: int) -> optax.GradientTransformation:
  """Returns an optimizer with the schedules of the settings `local`, in a run of so many rounds."""
  if not is_used(settings):
    return optimizer
  over_rounds = factor(settings.schedule, settings.warmup_rounds, settings.lr_end)
  over_steps = factor(settings.step_schedule, settings.warmup_steps, settings.lr_end)
  return scheduled(
      optimizer, by_step=over_steps,
      by_round=(lambda done: over_rounds(done, rounds)) if goes_by_round(settings) else None)


def scheduled(optimizer: optax.GradientTransformation, *,
              by_round: Callable | None = None, by_step: Callable | None = None,
              ) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer whose updates are scaled by where in a run they are.

  Args:
    optimizer: any.
    by_round: (round) -> a factor.
    by_step: (step, steps of the client in the round) -> a factor.
  """
  optimizer = optax.with_extra_args_support(optimizer)

  def update(updates, state, params=None, *, moment: Moment | None = None,
             **others):
    assert moment, 'a schedule, but no moment'
    updates, state = optimizer.update(updates, state, params, moment=moment, **others)
    if by_round:
      assert moment.round is not None, 'clients are not told the round'
      updates = tree.scale(by_round(moment.round), updates)
    if by_step:
      updates = tree.scale(by_step(moment.step, moment.steps), updates)
    return updates, state

  return optax.GradientTransformationExtraArgs(optimizer.init, update)
