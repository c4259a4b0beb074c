"""FedOpt line by line (Reddi et al. 2021, algorithms 1 and 2).

The paper's FedAdam has no bias correction; the library takes optax's, which has:
`corrected` is what optax adds.
"""

import numpy as np
from reference.fedavg import average, client_update, full_batches, size_weights


def _corrected(moment, beta, step):
  return moment / (1 - beta**step)


def _adaptive(m, v, step, lr, b1, b2, eps):
  change = lr * _corrected(m, b1, step) / (np.sqrt(_corrected(v, b2, step)) + eps)
  return change, {'m': m, 'v': v}


def adam(delta, memory, step, *, lr, b1, b2, eps):
  """FedAdam: returns (change, memory)."""
  m = b1 * memory.get('m', 0) + (1 - b1) * delta
  v = b2 * memory.get('v', 0) + (1 - b2) * delta**2
  return _adaptive(m, v, step, lr, b1, b2, eps)


def adagrad(delta, memory, step, *, lr, tau):
  """FedAdagrad, with beta_1 = 0 and v_{-1} = tau^2: returns (change, memory)."""
  del step
  v = memory.get('v', tau**2) + delta**2
  return lr * delta / (np.sqrt(v) + tau), {'v': v}


def fedopt(params, clients, *, rounds, epochs, lr, server):
  """Returns the global model; `server` is one of the rules above with its settings bound."""
  memory = {name: {} for name in params}
  for step in range(1, rounds + 1):
    models = [client_update(params, x, y, full_batches(y, epochs), lr=lr) for x, y in clients]
    mean = average(models, size_weights(clients))
    moved = {}
    for name in params:
      change, memory[name] = server(mean[name] - params[name], memory[name], step)
      moved[name] = params[name] + change
    params = moved
  return params
