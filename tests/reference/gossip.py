"""Gossip line by line (D-SGD; Koloskova et al. 2020), with momentum that stays at home."""

import numpy as np
from reference import softmax_regression


def ring(places):
  """Returns the Metropolis weights of a ring, for agents at these places of it: [K, K]."""
  count = len(places)
  matrix = np.zeros((count, count))
  for i in range(count):
    for j in range(count):
      if (places[i] - places[j]) % count in (0, 1, count - 1):
        matrix[i, j] = 1 / 3
  return matrix


def momentum_steps(params, velocity, x, y, steps, *, lr, beta, gradient):
  """Runs full-batch steps with heavy-ball momentum: returns (params, velocity)."""
  for _ in range(steps):
    slope = gradient(params, x, y)
    velocity = {name: beta * velocity[name] + slope[name] for name in params}
    params = {name: params[name] - lr * velocity[name] for name in params}
  return params, velocity


def mix(matrix, models):
  """Returns what each agent makes of the models of all."""
  return [{name: sum(matrix[i, j] * model[name] for j, model in enumerate(models))
           for name in models[0]} for i in range(len(models))]


def gossip(models, clients, matrices, *, steps, lr, beta,
           gradient=softmax_regression.gradient):
  """Returns (models, velocities) after one round for each matrix.

  Args:
    models: the agents' first models.
    clients: a list of (x, y).
    matrices: how models are mixed; velocities are not.
    steps: full-batch steps of an agent in a round.
    lr: of an agent.
    beta: of the momentum.
    gradient: of the loss.
  """
  velocities = [{name: np.zeros_like(value) for name, value in model.items()}
                for model in models]
  for matrix in matrices:
    trained = [momentum_steps(model, velocity, x, y, steps, lr=lr, beta=beta, gradient=gradient)
               for model, velocity, (x, y) in zip(models, velocities, clients, strict=True)]
    models = mix(matrix, [model for model, _ in trained])
    velocities = [velocity for _, velocity in trained]
  return models, velocities
