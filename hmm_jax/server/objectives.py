"""Objectives on the server's examples: the loss of the clients' task, or a surrogate for it.

The server's data may come from another domain, and have other labels or none.
"""


import jax
from jax import lax
import jax.numpy as jnp
import optax

from hmm_jax.client import losses
from hmm_jax.registry import Setting
from hmm_jax.types import Examples, InputError, Loss, Model, Objective, PyTree


def labels(model: Model) -> Objective:
  """Returns the loss of the clients' task."""

  def rows(variables, x, y, context, **mode):
    del context
    outputs, variables = model.apply(variables, x, **mode)
    return model.task.loss(outputs, y), variables

  return Objective(_own_labels, _no_context, rows)


def entropy(model: Model) -> Objective:
  """Returns the entropy of predictions, which needs no labels.

  Raises:
    InputError: predictions of the task have none.

  Reference: Yang, Wang, Shen, Liu, Guo, Wang, Tao. AdaMerging: Adaptive Model Merging for
    Multi-Task Learning. ICLR 2024. arXiv:2310.02575.
  """

  entropy_of = model.task.entropy
  if entropy_of is None:
    raise InputError(f'got surrogate=entropy with task={model.task.name}; expected labels, as its '
                     'predictions are no probabilities')

  def rows(variables, x, y, context, **mode):
    del y, context
    outputs, variables = model.apply(variables, x, **mode)
    return entropy_of(outputs), variables

  return Objective(_own_labels, _no_context, rows)


def distill(model: Model) -> Objective:
  """Returns the KL divergence from the softmax of the models' mean logits.

  Reference: Lin, Kong, Stich, Jaggi. Ensemble Distillation for Robust Model Fusion in
    Federated Learning. NeurIPS 2020. arXiv:2006.07242.
  """

  def targets(models, examples):
    logits = lax.map(lambda variables: model.apply(variables, examples.x)[0], models)
    return examples._replace(y=jax.nn.softmax(logits.mean(axis=0)))

  def rows(variables, x, y, context, **mode):
    del context
    logits, variables = model.apply(variables, x, **mode)
    return optax.losses.kl_divergence(jax.nn.log_softmax(logits), y), variables

  return Objective(targets, _no_context, rows)


def fresh_head(model: Model, classes: int, *, ridge: float = 1e-3, steps: int = 50) -> Objective:
  """Returns the cross-entropy with labels of another task, of a new head on the shared trunk.

  The head is fitted once per round, on the features of the round's first model, by L-BFGS
  with a small ridge penalty (our choice: all merges of a round are evaluated with one head,
  which favors the plain average).

  Args:
    model: the network.
    classes: number of classes of the server's labels.
    ridge: weight of |kernel|^2 / 2, needed where the features separate the classes perfectly.
    steps: steps of L-BFGS.
  """

  def context(variables, examples):
    features = model.features(variables, examples.x)
    start = {'kernel': jnp.zeros((features.shape[1], classes)), 'bias': jnp.zeros(classes)}
    solver = optax.lbfgs()

    def value(head):
      fit = optax.softmax_cross_entropy_with_integer_labels(_linear(head, features), examples.y)
      return fit.mean() + ridge / 2 * jnp.square(head['kernel']).sum()

    def step(carry, _):
      head, state = carry
      now, gradient = optax.value_and_grad_from_state(value)(head, state=state)
      change, state = solver.update(
          gradient, state, head, value=now, grad=gradient, value_fn=value)
      return (optax.apply_updates(head, change), state), None

    (head, _), _ = lax.scan(step, (start, solver.init(start)), length=steps)
    return head

  def rows(variables, x, y, context, **mode):
    features = model.features(variables, x, **mode)
    return optax.softmax_cross_entropy_with_integer_labels(_linear(context, features), y), variables

  return Objective(_own_labels, context, rows)


def training_loss(objective: Objective) -> Loss:
  """Converts an objective to a training loss, which takes the context as `extra`."""

  def loss(params, statistics, batch, start, extra, key):
    del start
    rows, variables = objective.rows({'params': params, **statistics}, batch.x, batch.y, extra,
                                     train=True, mask=batch.mask, key=key)
    value = losses.masked_mean(rows, batch.mask)
    return value, (variables, value)

  return loss


def _own_labels(models: PyTree, examples: Examples) -> Examples:
  del models
  return examples


def _no_context(variables: PyTree, examples: Examples) -> tuple:
  del variables, examples
  return ()


def _linear(head, features):
  return features @ head['kernel'] + head['bias'][None]


SETTINGS = {
    'surrogate': Setting(
        'labels', "the objective on the server's examples: labels of the clients' task, labels of "
        "another task with a head of its own, distillation of the clients' models, or entropy of "
        'the predictions',
        choices=('labels', 'head', 'distil', 'entropy')),
    'head_ridge': Setting(1e-3, 'ridge penalty of the new head (head)', above=0),
    'head_steps': Setting(50, 'steps of L-BFGS to fit the new head (head)', at_least=1),
}
