"""Local training of ONE client; `mappers` lifts it over all of them."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import optax

from hmm_jax import tree
from hmm_jax.types import Array, Batch, Clients, Cohort, Examples, InputError, Key, Local, Loss


def local_training(loss: Loss, optimizer: optax.GradientTransformation, *, batch: int,
                   epochs: int = 1, steps: int = 0) -> Local:
  """Trains one client by minibatch steps from a fresh optimiser state.

  An epoch visits the client's own rows once, in a new order; its last batch is
  padded and masked, never wrapped around, so that ragged clients are exact. The
  loop runs the client's own number of steps: a padded step does not exist. `extra`
  goes to the loss, and comes back as it was.

  Args:
    loss: what to minimise.
    optimizer: any optax transformation.
    batch: rows a step, at most; the whole client where it holds fewer.
    epochs: passes over the client's rows.
    steps: if above 0, this many steps instead, reshuffling at every epoch's end.

  Raises:
    InputError: a setting is out of range.
  """
  train = _minibatch_steps(loss, optimizer, batch, epochs, steps)

  def local(start, examples, client, extra, key):
    fresh = optimizer.init(start['params'])
    variables, _, report = train(start, fresh, examples, client, extra, key)
    return variables, extra, report

  return local


def continued_training(loss: Loss, optimizer: optax.GradientTransformation, *, batch: int,
                       epochs: int = 1, steps: int = 0) -> Local:
  """Trains like `local_training`, but `extra` is the optimiser state, which lives on.

  The loss is given () in its place. Arguments and errors are those of `local_training`.
  """
  train = _minibatch_steps(loss, optimizer, batch, epochs, steps)

  def local(start, examples, client, opt_state, key):
    return train(start, opt_state, examples, client, (), key)

  return local


def _minibatch_steps(loss: Loss, optimizer: optax.GradientTransformation, batch: int,
                     epochs: int, steps: int) -> Callable:
  """Returns (start, opt_state, examples, client, extra, key) -> (variables, opt_state, Cohort)."""
  if batch < 1:
    raise InputError(f'got local.batch={batch}; expected at least 1')
  if steps < 0 or (steps == 0 and epochs < 1):
    raise InputError(f'got local.epochs={epochs}, local.steps={steps}; expected one of them '
                     'to be at least 1')

  def update(variables, opt_state, minibatch, start, extra, key):
    params = variables['params']
    statistics = {name: value for name, value in variables.items() if name != 'params'}
    gradient, (variables, value) = jax.grad(loss, has_aux=True)(
        params, statistics, minibatch, start, extra, key)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return {**variables, 'params': optax.apply_updates(params, updates)}, opt_state, value

  def train(start, opt_state, examples, client, extra, key):
    width = min(batch, client.index.shape[0])
    per_epoch = -(-client.size // width)
    total = jnp.where(client.size > 0, steps, 0) if steps else epochs * per_epoch

    def epoch(e, carry):
      epoch_key = jax.random.fold_in(key, e)
      rows = shuffle(epoch_key, client, width)

      def step(s, carry):
        variables, opt_state, loss_sum, seen = carry
        minibatch = gather(examples, rows, s * width, width, client.size)
        variables, opt_state, value = update(
            variables, opt_state, minibatch, start, extra, jax.random.fold_in(epoch_key, s))
        count = minibatch.mask.sum()
        return variables, opt_state, loss_sum + value * count, seen + count

      return lax.fori_loop(0, jnp.minimum(per_epoch, total - e * per_epoch), step, carry)

    passes = -(-total // jnp.maximum(per_epoch, 1))
    variables, opt_state, loss_sum, seen = lax.fori_loop(
        0, passes, epoch, (start, opt_state, jnp.float32(0), jnp.int32(0)))
    mean_loss = loss_sum / jnp.maximum(seen, 1)
    # A norm is one fast pass; it is finite only if every entry is.
    finite = jnp.isfinite(mean_loss) & jnp.isfinite(tree.dot(variables, variables))
    return variables, opt_state, Cohort(client.id, mean_loss, finite, client.size, total)

  return train


def shuffle(key: Key, client: Clients, multiple: int) -> Array:
  """Returns the client's row numbers in random order, then padding: [N'].

  N' is N rounded up to the `multiple`, so that slices of that length never clamp.
  """
  length = client.index.shape[0]
  draws = jnp.where(jnp.arange(length) < client.size, jax.random.uniform(key, (length,)), 2.0)
  return jnp.pad(client.index[jnp.argsort(draws)], (0, -length % multiple))


def gather(examples: Examples, rows: Array, start: Array, count: int, size: Array) -> Batch:
  """Collects the rows [start, start + count) of a list whose first `size` are valid."""
  mask = start + jnp.arange(count) < size
  wanted = lax.dynamic_slice(rows, (start,), (count,))
  # Padding repeats a row of the batch: what the mask hides must not be NaN either.
  wanted = jnp.where(mask, wanted, wanted[0])
  # Row numbers are in bounds by contract, so XLA need not check them.
  pick = lambda x: x.at[wanted].get(mode='promise_in_bounds')
  return Batch(jax.tree.map(pick, examples.x), pick(examples.y), mask)
