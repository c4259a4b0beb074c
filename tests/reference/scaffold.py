"""SCAFFOLD line by line (Karimireddy et al. 2020, algorithm 1 with option II)."""

import numpy as np
from reference import softmax_regression


def scaffold(x, clients, *, cohorts, steps, lr, server_lr):
  """Returns (x, c, list of c_i) after one round for each cohort.

  Args:
    x: the first global model.
    clients: a list of (inputs, labels); one without rows sends back what it got.
    cohorts: for each round, the positions of the clients that take part.
    steps: K of the paper, full-batch steps of a client.
    lr: eta_l.
    server_lr: eta_g.
  """
  c = {name: np.zeros_like(value) for name, value in x.items()}
  c_i = [c] * len(clients)
  for cohort in cohorts:
    delta_y, delta_c = [], []
    for i in cohort:
      inputs, labels = clients[i]
      y, c_plus = x, c_i[i]
      if len(labels):
        for _ in range(steps):
          g = softmax_regression.gradient(y, inputs, labels)
          y = {n: y[n] - lr * (g[n] - c_i[i][n] + c[n]) for n in y}
        c_plus = {n: c_i[i][n] - c[n] + (x[n] - y[n]) / (steps * lr) for n in y}
      delta_y.append({n: y[n] - x[n] for n in x})
      delta_c.append({n: c_plus[n] - c_i[i][n] for n in x})
      c_i = [c_plus if k == i else old for k, old in enumerate(c_i)]
    x = {n: x[n] + server_lr / len(cohort) * sum(d[n] for d in delta_y) for n in x}
    c = {n: c[n] + sum(d[n] for d in delta_c) / len(clients) for n in x}
  return x, c, c_i
