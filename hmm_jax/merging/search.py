"""Searches for the coefficients of a merge, on data.

From `start`, any array c, a search lowers `loss`: (c, batch) -> scalar over the T members of
`batches`, and reports `judge`: (c) -> scalar along the way; `project`: (c) -> c brings back what
has left the space of allowed coefficients. It is one scan.
"""


import jax
from jax import lax
import jax.numpy as jnp
import optax

from hmm_jax.types import Array, Key, Search, Trace


def gradient_search(optimizer: optax.GradientTransformation, *, pull: float = 0.0,
                    marks: int = 5) -> Search:
  """Searches by the gradient on one minibatch a step.

  Args:
    optimizer: any optax transformation; Adam in the reconstruction.
    pull: weight of pull/2 |c - start|^2.
    marks: how often, at most, candidates along the search are evaluated by `judge`.
  """

  def search(loss, judge, start, batches, key, project):
    del key

    def pulled(c, batch):
      value = loss(c, batch)
      return value + _pull(pull, c, start), value

    def step(carry, batch):
      c, state = carry
      gradient, value = jax.grad(pulled, has_aux=True)(c, batch)
      change, state = optimizer.update(gradient, state, c)
      return (project(optax.apply_updates(c, change)), state), value

    return _marked(step, judge, (start, optimizer.init(start)), batches, marks)

  return Search(search, gradients=1, forwards=0)


def evolution_search(*, sigma: float, population: int = 16, pull: float = 0.0,
                     marks: int = 5) -> Search:
  """Searches by a (mu, lambda) evolution strategy, without gradients.

  A step draws lambda candidates around the mean, each with a step length of its own, and
  recombines the best quarter, mu, of them: the mean of their coefficients, the geometric mean
  of their lengths. All are scored on the step's one minibatch.

  Args:
    sigma: the first step length.
    population: lambda.
    pull, marks: as in `gradient_search`.

  Reference: Beyer, Schwefel. Evolution strategies: a comprehensive introduction. Natural
    Computing 1, 2002: log-normal self-adaptation, intermediate recombination.
  """
  parents = max(population // 4, 1)

  def search(loss, judge, start, batches, key, project):
    rate = 1 / jnp.sqrt(2.0 * start.size)

    def step(carry, batch):
      mean, log_sigma, key = carry
      key, draw_key = jax.random.split(key)

      def candidate(key):
        length_key, place_key = jax.random.split(key)
        length = log_sigma + rate * jax.random.normal(length_key)
        return project(mean + jnp.exp(length) * jax.random.normal(place_key, mean.shape)), length

      candidates, lengths = jax.vmap(candidate)(jax.random.split(draw_key, population))
      values = lax.map(lambda c: loss(c, batch), candidates)
      pulls = jax.vmap(lambda c: _pull(pull, c, start))(candidates)
      best = jnp.argsort(values + pulls)[:parents]
      # Where too few have a loss, the mean stands in for the others.
      chosen = jax.vmap(jnp.where, (0, None, 0))(jnp.isnan(values[best]), mean, candidates[best])
      return (chosen.mean(axis=0), lengths[best].mean(), key), jnp.nanmean(values[best])

    return _marked(step, judge, (start, jnp.log(sigma), key), batches, marks)

  return Search(search, gradients=0, forwards=population)


def minibatches(key: Key, rows: Array, *, batch: int, steps: int) -> Array:
  """Cuts a stream of reshuffled epochs of `rows` [N] into minibatches: [T, B].

  B is `batch`, or N where there are fewer rows.
  """
  width = min(batch, len(rows))
  epochs = -(-steps * width // len(rows))
  stream = jax.vmap(lambda k: jax.random.permutation(k, rows))(jax.random.split(key, epochs))
  return stream.ravel()[:steps * width].reshape(steps, width)


def _pull(strength, c, start):
  return strength / 2 * jnp.square(c - start).sum()


def _marked(step, judge, carry, batches, most):
  """Scans all batches; `carry` begins with c, which is judged at marks that part them evenly."""
  steps = jax.tree.leaves(batches)[0].shape[0]
  marks = max(m for m in range(1, most + 1) if steps % m == 0)
  parts = jax.tree.map(lambda x: x.reshape(marks, -1, *x.shape[1:]), batches)

  def part(carry, some):
    carry, losses = lax.scan(step, carry, some)
    return carry, (carry[0], losses.mean(), judge(carry[0]))

  _, seen = lax.scan(part, carry, parts)
  return Trace((1 + jnp.arange(marks)) * (steps // marks), *seen)
