"""Training and gradients on the server's examples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hmm_jax.client.local import full_gradient
from hmm_jax.client.sampling import central
from hmm_jax.registry import Setting
from hmm_jax.server.objectives import training_loss
from hmm_jax.types import Array, Local, Objective


def server_training(objective: Objective, local: Local) -> Callable:
  """Returns a function that trains a model on all of the server's examples.

  Args:
    objective: loss on the server's examples.
    local: one client's training on `objectives.training_loss`.

  Returns:
    (variables, models, server, key) -> (variables, Cohort of one, metrics); `models` [m, ...] are
    the clients', for objectives whose targets are their predictions.
  """

  def train(variables, models, server, key):
    examples = objective.targets(models, server.examples)
    context = objective.context(variables, examples)
    trained, _, report = local(variables, examples, central(server), context, key)
    cohort = jax.tree.map(lambda x: x[None], report)
    return trained, cohort, {'server/loss': report.loss, **spent(gradients=report.steps)}

  return train


def server_gradient(objective: Objective, *, batch: int) -> Callable:
  """Returns (variables, server, key) -> (the gradient over all examples, minibatches used)."""
  whole = full_gradient(training_loss(objective), batch=batch)

  def gradient(variables, server, key):
    examples = objective.targets((), server.examples)
    context = objective.context(variables, examples)
    count = -(-len(examples.y) // batch)
    return whole(variables, examples, central(server), context, key), count

  return gradient


def spent(*, gradients: Array | int, forwards: Array | int = 0) -> dict:
  """Returns cost metrics: minibatch gradients, and further examples evaluated, at the server."""
  return {'server/gradients': jnp.float32(gradients), 'server/forwards': jnp.float32(forwards)}


SETTINGS = {
    'steps': Setting(100, 'minibatches per round at the server, to train on or to search with',
                     at_least=1),
    'batch': Setting(50, 'examples per minibatch', at_least=1, at_most=10**6),
    'lr': Setting(0.05, 'learning rate of SGD at the server', above=0),
}
