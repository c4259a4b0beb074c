"""Local training of ONE client; `mappers` maps it over all clients."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.types import (
    Array,
    Batch,
    Clients,
    Cohort,
    Examples,
    InputError,
    Key,
    Local,
    Loss,
    Moment,
)


def local_training(loss: Loss, optimizer: optax.GradientTransformation, *, batch: int,
                   epochs: int = 1, steps: int = 0) -> Local:
  """Trains one client by minibatch steps from a fresh optimizer state.

  An epoch visits the client's own examples once, in a new order; its last batch is
  padded and masked, never wrapped around, so that clients of different sizes are exact.
  The loop runs the client's own number of steps, with no padded steps. `extra` is passed
  to the loss and returned unchanged.

  Args:
    loss: what to minimize.
    optimizer: any optax transformation; if its update takes `moment`, it gets a `Moment`.
    batch: examples per step, at most; all of the client's where it holds fewer.
    epochs: passes over the client's examples.
    steps: if above 0, this many steps instead, reshuffling after every epoch.

  Raises:
    InputError: a setting is out of range.
  """
  train = over_minibatches(descent(loss, optimizer), batch=batch, epochs=epochs, steps=steps)

  def local(start, examples, client, extra, key):
    fresh = optimizer.init(start['params'])
    (variables, _), report = train((start, fresh), (start, extra), examples, client, key)
    return variables, extra, report

  return local


def continued_training(loss: Loss, optimizer: optax.GradientTransformation, *, batch: int,
                       epochs: int = 1, steps: int = 0) -> Local:
  """Trains like `local_training`, with an optimizer state that is kept between rounds as `extra`.

  The loss gets () as its `extra`. Arguments and errors are those of `local_training`.
  """
  train = over_minibatches(descent(loss, optimizer), batch=batch, epochs=epochs, steps=steps)

  def local(start, examples, client, opt_state, key):
    (variables, opt_state), report = train((start, opt_state), (start, ()), examples, client, key)
    return variables, opt_state, report

  return local


def descent(loss: Loss, optimizer: optax.GradientTransformation) -> Callable:
  """Returns the standard update for `over_minibatches`: one optimizer step on the loss.

  Its `carry` is (variables, optimizer state), its `given` is (start, extra) for the loss.
  """

  advance = optax.with_extra_args_support(optimizer).update

  def update(carry, given, minibatch, key):
    variables, opt_state = carry
    params = variables['params']
    statistics = tree.statistics(variables)
    gradient, (variables, value) = jax.grad(loss, has_aux=True)(
        params, statistics, minibatch, *given, key)
    updates, opt_state = advance(gradient, opt_state, params, moment=minibatch.moment)
    return ({**variables, 'params': optax.apply_updates(params, updates)}, opt_state), value

  return update


def over_minibatches(update: Callable, *, batch: int, epochs: int = 1,
                     steps: int = 0) -> Callable:
  """Returns a loop that applies an update to each of a client's minibatches.

  Args:
    update: (carry, given, minibatch, key) -> (carry, mean loss over the batch's examples).
      `carry` is a tuple whose first member is the model.
    batch, epochs, steps: as in `local_training`.

  Returns:
    (carry, given, examples, client, key) -> (carry, Cohort); `given` is the same for every
    update.

  Raises:
    InputError: a setting is out of range.
  """
  if batch < 1:
    raise InputError(f'got batch={batch}; expected at least 1')
  if steps < 0 or (steps == 0 and epochs < 1):
    raise InputError(f'got epochs={epochs}, steps={steps}; expected one of them '
                     'to be at least 1')

  def train(carry, given, examples, client, key):
    width = min(batch, client.index.shape[0])
    per_epoch = -(-client.size // width)
    total = jnp.where(client.size > 0, steps, 0) if steps else epochs * per_epoch

    def epoch(e, loop):
      epoch_key = jax.random.fold_in(key, e)
      rows = shuffle(epoch_key, client, width)

      def step(s, loop):
        carry, loss_sum, seen = loop
        minibatch = gather(examples, rows, s * width, width, client.size)._replace(
            moment=Moment(client.round, e * per_epoch + s, total))
        carry, value = update(carry, given, minibatch, jax.random.fold_in(epoch_key, s))
        count = minibatch.mask.sum()
        return carry, loss_sum + value * count, seen + count

      return lax.fori_loop(0, jnp.minimum(per_epoch, total - e * per_epoch), step, loop)

    passes = -(-total // jnp.maximum(per_epoch, 1))
    carry, loss_sum, seen = lax.fori_loop(
        0, passes, epoch, (carry, jnp.float32(0), jnp.int32(0)))
    mean_loss = loss_sum / jnp.maximum(seen, 1)
    # Cheaper than a test of each entry: a norm is finite only if every entry is.
    finite = jnp.isfinite(mean_loss) & jnp.isfinite(tree.dot(carry[0], carry[0]))
    return carry, Cohort(client.id, mean_loss, finite, client.size, total)

  return train


def full_gradient(loss: Loss, *, batch: int) -> Callable:
  """Returns (variables, examples, client, extra, key) -> the full-batch gradient of the loss.

  It is the mean over the client's examples, in the structure of the parameters; 0 for a client
  without examples. Normalization statistics are not updated.
  """

  def add(carry, given, minibatch, key):
    (total,), (variables, extra) = carry, given
    statistics = tree.statistics(variables)
    gradient, (_, value) = jax.grad(loss, has_aux=True)(
        variables['params'], statistics, minibatch, variables, extra, key)
    return (tree.add(total, tree.scale(minibatch.mask.sum(), gradient)),), value

  walk = over_minibatches(add, batch=batch, epochs=1)

  def gradient(variables, examples, client, extra, key):
    (total,), report = walk(
        (tree.zeros(variables['params']),), (variables, extra), examples, client, key)
    return tree.scale(1 / jnp.maximum(report.size, 1), total)

  return gradient


def shuffle(key: Key, client: Clients, multiple: int) -> Array:
  """Returns the client's indices in random order, then padding: [N'].

  N' is N rounded up to a multiple of `multiple`, so that slices of that length are in bounds.
  """
  length = client.index.shape[0]
  draws = jnp.where(jnp.arange(length) < client.size, jax.random.uniform(key, (length,)), 2.0)
  return jnp.pad(client.index[jnp.argsort(draws)], (0, -length % multiple))


def gather(examples: Examples, rows: Array, start: Array | int, count: int,
           size: Array | int) -> Batch:
  """Gathers the examples at rows[start:start + count]; the first `size` indices are valid."""
  mask = start + jnp.arange(count) < size
  wanted = lax.dynamic_slice(rows, (start,), (count,))
  # Padding repeats an example of the batch, because masked values must not be NaN either.
  wanted = jnp.where(mask, wanted, wanted[0])
  # Indices are in bounds by contract, so XLA need not check them.
  pick = lambda x: x.at[wanted].get(mode='promise_in_bounds')
  return Batch(jax.tree.map(pick, examples.x), pick(examples.y), mask)
