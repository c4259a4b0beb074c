"""Training on the server's examples, and their gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hmm_jax.client.local import full_gradient
from hmm_jax.client.sampling import central
from hmm_jax.registry import Setting
from hmm_jax.server.objectives import training_loss
from hmm_jax.types import Array, Local, Objective


def server_training(objective: Objective, local: Local) -> Callable:
  """Trains a model on all of the server's rows.

  Args:
    objective: what the rows teach.
    local: one client's training on `objectives.training_loss`.

  Returns:
    (variables, models, server, key) -> (variables, Cohort of one, metrics); `models` [m, ...] are
    the clients', for a objective that learns from them.
  """

  def train(variables, models, server, key):
    examples = objective.targets(models, server.examples)
    context = objective.context(variables, examples)
    trained, _, report = local(variables, examples, central(server), context, key)
    cohort = jax.tree.map(lambda x: x[None], report)
    return trained, cohort, {'server/loss': report.loss, **spent(gradients=report.steps)}

  return train


def server_gradient(objective: Objective, *, batch: int) -> Callable:
  """Returns (variables, server, key) -> (the gradient over all its rows, minibatches it took)."""
  whole = full_gradient(training_loss(objective), batch=batch)

  def gradient(variables, server, key):
    examples = objective.targets((), server.examples)
    context = objective.context(variables, examples)
    count = -(-len(examples.y) // batch)
    return whole(variables, examples, central(server), context, key), count

  return gradient


def spent(*, gradients: Array, forwards: int = 0) -> dict:
  """Reports a round's work on server rows: minibatches differentiated, rows evaluated besides."""
  return {'server/gradients': jnp.float32(gradients), 'server/forwards': jnp.float32(forwards)}


SETTINGS = {
    'steps': Setting(100, 'minibatches in a round, of a search or of training', at_least=1),
    'batch': Setting(50, 'examples in a minibatch', at_least=1),
    'lr': Setting(0.05, 'learning rate of SGD at the server', above=0),
}
