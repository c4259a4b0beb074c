"""Searches for the coefficients of a merge, on data.

From `start`, any array c, a search lowers `loss`: (c, batch) -> scalar over the T members of
`batches`, and scores candidates by `evaluate`: (c) -> scalar along the way; `project`: (c) -> c
maps coefficients back to the allowed ones. It is one scan.
"""

import jax
from jax import lax
import jax.numpy as jnp
import optax

from hmm_jax.types import Array, Key, Search, Trace


def gradient_search(optimizer: optax.GradientTransformation, *, pull: float = 0.0,
                    checkpoints: int = 5) -> Search:
  """Returns a search by gradients, on one minibatch per step.

  Args:
    optimizer: any optax transformation; Adam in our reconstruction of Feddle.
    pull: weight of pull/2 |c - start|^2.
    checkpoints: maximal number of candidates along the search that are evaluated.
  """

  def search(loss, evaluate, start, batches, key, project):
    del key

    def pulled(c, batch):
      value = loss(c, batch)
      return value + _pull(pull, c, start), value

    def step(carry, batch):
      c, state = carry
      gradient, value = jax.grad(pulled, has_aux=True)(c, batch)
      change, state = optimizer.update(gradient, state, c)
      return (project(optax.apply_updates(c, change)), state), value

    carry = start, optimizer.init(start)
    return _scan_with_checkpoints(step, evaluate, carry, batches, checkpoints)

  return Search(search, gradients=1, forwards=0)


def evolution_search(*, sigma: float, population: int = 16, pull: float = 0.0,
                     checkpoints: int = 5) -> Search:
  """Returns a search by a (mu, lambda) evolution strategy, without gradients.

  A step draws lambda candidates around the mean, each with its own step size, and recombines
  the best quarter, mu, of them: the mean of their coefficients, the geometric mean of their
  step sizes. All are evaluated on the minibatch of the step.

  Args:
    sigma: initial step size.
    population: lambda.
    pull, checkpoints: as in `gradient_search`.

  Reference: Beyer, Schwefel. Evolution strategies: a comprehensive introduction. Natural
    Computing 1, 2002: log-normal self-adaptation, intermediate recombination.
  """
  parents = max(population // 4, 1)

  def search(loss, evaluate, start, batches, key, project):
    rate = 1 / jnp.sqrt(2.0 * start.size)

    def step(carry, batch):
      mean, log_sigma, key = carry
      key, draw_key = jax.random.split(key)

      def candidate(key):
        size_key, place_key = jax.random.split(key)
        size = log_sigma + rate * jax.random.normal(size_key)
        return project(mean + jnp.exp(size) * jax.random.normal(place_key, mean.shape)), size

      candidates, sizes = jax.vmap(candidate)(jax.random.split(draw_key, population))
      values = lax.map(lambda c: loss(c, batch), candidates)
      pulls = jax.vmap(lambda c: _pull(pull, c, start))(candidates)
      best = jnp.argsort(values + pulls)[:parents]
      # Candidates whose loss is NaN are replaced by the mean.
      chosen = jax.vmap(jnp.where, (0, None, 0))(jnp.isnan(values[best]), mean, candidates[best])
      return (chosen.mean(axis=0), sizes[best].mean(), key), jnp.nanmean(values[best])

    carry = start, jnp.log(sigma), key
    return _scan_with_checkpoints(step, evaluate, carry, batches, checkpoints)

  return Search(search, gradients=0, forwards=population)


def minibatches(key: Key, rows: Array, *, batch: int, steps: int) -> Array:
  """Returns minibatches [T, B] of a stream of reshuffled epochs of indices `rows` [N].

  B is `batch`, or N if that is smaller.
  """
  width = min(batch, len(rows))
  epochs = -(-steps * width // len(rows))
  stream = jax.vmap(lambda k: jax.random.permutation(k, rows))(jax.random.split(key, epochs))
  return stream.ravel()[:steps * width].reshape(steps, width)


def _pull(strength, c, start):
  return strength / 2 * jnp.square(c - start).sum()


def _scan_with_checkpoints(step, evaluate, carry, batches, most):
  """Scans all batches; evaluates c, the first entry of `carry`, at evenly spaced checkpoints."""
  steps = jax.tree.leaves(batches)[0].shape[0]
  checkpoints = max(m for m in range(1, most + 1) if steps % m == 0)
  parts = jax.tree.map(lambda x: x.reshape(checkpoints, -1, *x.shape[1:]), batches)

  def part(carry, some):
    carry, losses = lax.scan(step, carry, some)
    return carry, (carry[0], losses.mean(), evaluate(carry[0]))

  _, seen = lax.scan(part, carry, parts)
  return Trace((1 + jnp.arange(checkpoints)) * (steps // checkpoints), *seen)
