"""FedAvg line by line (McMahan et al. 2017, algorithm 1)."""

from reference import softmax_regression


def client_update(params, x, y, batches, *, lr, gradient=softmax_regression.gradient):
  """Runs SGD over `batches`, lists of row numbers into x and y."""
  for rows in batches:
    slope = gradient(params, x[rows], y[rows])
    params = {name: params[name] - lr * slope[name] for name in params}
  return params


def average(models, weights):
  """Returns the weighted mean of a list of models."""
  return {name: sum(weight * model[name] for weight, model in zip(weights, models, strict=True))
          for name in models[0]}


def size_weights(clients):
  total = sum(len(y) for _, y in clients)
  return [len(y) / total for _, y in clients]


def equal_weights(clients):
  return [1 / len(clients) for _ in clients]


def full_batches(y, epochs):
  """Returns `epochs` batches, each of all rows: their order cannot matter."""
  return [list(range(len(y)))] * epochs if len(y) else []


def fedavg(params, clients, *, cohorts, epochs, lr, weigh=size_weights):
  """Returns the global model after one round for each cohort.

  Args:
    params: the first global model.
    clients: a list of (x, y).
    cohorts: for each round, the positions of the clients that take part.
    epochs: full-batch steps of a client.
    lr: of a client.
    weigh: (clients) -> weights.
  """
  for cohort in cohorts:
    chosen = [clients[k] for k in cohort]
    models = [client_update(params, x, y, full_batches(y, epochs), lr=lr) for x, y in chosen]
    params = average(models, weigh(chosen))
  return params
