"""Training losses of clients; a regularizer is a wrapper around a loss."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from hmm_jax import tree
from hmm_jax.types import Array, Batch, InputError, Loss, Model


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


def accumulated(loss: Loss, batch: int) -> Loss:
  """Returns a loss whose gradient is computed `batch` examples at a time, and added up.

  The gradient of a batch is that of `loss` on all of its examples, but for rounding; parts count
  by their valid examples. BatchNorm normalizes each part by itself, and its running statistics see
  one after the other.
  """

  def total(params, statistics, examples, start, extra, key):
    count = -(-len(examples.mask) // batch)
    if count == 1:
      return loss(params, statistics, examples, start, extra, key)
    fixed, valid = lax.stop_gradient(params), examples.mask.sum()

    def add(carry, part):
      slope, statistics, mean = carry
      rows, i = part
      gradient, (variables, value) = jax.grad(loss, has_aux=True)(
          fixed, statistics, rows, start, extra, jax.random.fold_in(key, i))
      share = rows.mask.sum() / jnp.maximum(valid, 1)
      return (tree.add(slope, tree.scale(share, gradient)), tree.statistics(variables),
              mean + share * value), None

    parts = _parts(examples._replace(moment=None), count, batch), jnp.arange(count)
    (slope, statistics, mean), _ = lax.scan(
        add, (tree.zeros(params), statistics, jnp.float32(0)), parts)
    # What has this slope in the parameters is as good as the loss itself.
    value = tree.dot(lax.stop_gradient(slope), params)
    return value, ({'params': params, **statistics}, mean)

  return total


def _parts(examples: Batch, count: int, batch: int) -> Batch:
  """Splits a batch in `count` of `batch` examples each; masked ones fill up the last."""
  extra = count * batch - len(examples.mask)
  split = lambda x, **how: jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1), **how).reshape(
      count, batch, *x.shape[1:])
  # Padding repeats an example, because masked values must not be NaN either.
  made = jax.tree.map(lambda x: split(x, mode='edge'), examples)
  return made._replace(mask=split(examples.mask))


def corrected(loss: Loss) -> Loss:
  """Adds <extra, params>, so that `extra` is added to the gradient of every step."""

  def linear(params, statistics, batch, start, extra, key):
    value, aux = loss(params, statistics, batch, start, extra, key)
    return value + tree.dot(jax.lax.stop_gradient(extra), params), aux

  return linear
