"""Training losses of clients; a regularizer is a wrapper around a loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, InputError, Loss, Model


def masked_mean(values: Array, mask: Array) -> Array:
  """Averages `values` [B] over the examples where `mask` [B] is True; 0 if there are none."""
  return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


def supervised(model: Model, *, smoothing: float = 0.0) -> Loss:
  """Returns the mean of the task's loss over the valid examples of a batch.

  Args:
    model: the network; `model.task.loss` is the loss of an example.
    smoothing: share of the label that is spread evenly over all classes; the
      reported loss excludes it.

  Raises:
    InputError: smoothing of labels that are no classes.

  Reference (smoothing): Szegedy, Vanhoucke, Ioffe, Shlens, Wojna. Rethinking the
    Inception Architecture for Computer Vision. CVPR 2016. arXiv:1512.00567, section 7.
  """

  task = model.task
  if smoothing and not task.smooth:
    raise InputError(f'got label_smoothing={smoothing} with task={task.name}; expected 0, as its '
                     'labels are no classes')

  def loss(params, statistics, batch, start, extra, key):
    del start, extra
    outputs, variables = model.apply(
        {'params': params, **statistics}, batch.x, train=True, mask=batch.mask, key=key)
    value = masked_mean(task.loss(outputs, batch.y), batch.mask)
    if not (smoothing and task.smooth):
      return value, (variables, value)
    even = masked_mean(task.smooth(outputs), batch.mask)
    return (1 - smoothing) * value + smoothing * even, (variables, value)

  return loss


def proximal(loss: Loss, mu: float, *,
             anchor: Callable = lambda start, extra: start['params']) -> Loss:
  """Adds mu/2 ||params - anchor||^2, a proximal term around the round's initial model.

  Args:
    loss: the loss to regularize.
    mu: weight of the term.
    anchor: (start, extra) -> the parameters to stay close to; by default those of `start`.

  Reference: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith. Federated Optimization
    in Heterogeneous Networks. MLSys 2020. arXiv:1812.06127.
  """

  def pulled(params, statistics, batch, start, extra, key):
    value, aux = loss(params, statistics, batch, start, extra, key)
    drift = tree.sub(params, anchor(start, extra))
    return value + mu / 2 * tree.dot(drift, drift), aux

  return pulled


def corrected(loss: Loss) -> Loss:
  """Adds <extra, params>, so that `extra` is added to the gradient of every step."""

  def linear(params, statistics, batch, start, extra, key):
    value, aux = loss(params, statistics, batch, start, extra, key)
    return value + tree.dot(jax.lax.stop_gradient(extra), params), aux

  return linear
