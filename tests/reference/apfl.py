"""APFL line by line (Deng et al. 2020, algorithm 1 with the step of alpha)."""

from reference import fedavg, softmax_regression


def mixture(alpha, v, w):
  return {n: alpha * v[n] + (1 - alpha) * w[n] for n in v}


def local_update(w, v, alpha, x, y, *, steps, lr, alpha_lr, momentum):
  """Runs full-batch steps with heavy-ball momentum: returns (w_i, v_i, alpha_i)."""
  m, m_mixed = (dict.fromkeys(w, 0) for _ in range(2))
  for _ in range(steps if len(y) else 0):
    g = softmax_regression.gradient(w, x, y)
    g_mixed = softmax_regression.gradient(mixture(alpha, v, w), x, y)
    slope = sum(((v[n] - w[n]) * g_mixed[n]).sum() for n in v)
    m = {n: momentum * m[n] + g[n] for n in w}
    m_mixed = {n: momentum * m_mixed[n] + alpha * g_mixed[n] for n in v}
    w, v, alpha = ({n: w[n] - lr * m[n] for n in w}, {n: v[n] - lr * m_mixed[n] for n in v},
                   min(max(alpha - alpha_lr * slope, 0.0), 1.0))
  return w, v, alpha


def apfl(w, clients, *, cohorts, steps, lr, alpha, alpha_lr, momentum):
  """Returns (w, list of v_i, list of alpha_i, list of mixtures) after one round a cohort.

  Args:
    w: the first global model, and everybody's own.
    clients: a list of (x, y).
    cohorts: for each round, the positions of the clients that take part.
    steps: full-batch steps of a client.
    lr: of the models.
    alpha: everybody's first share of its own model.
    alpha_lr: of those.
    momentum: of the models, which begins anew every round.
  """
  v, alphas = [w] * len(clients), [alpha] * len(clients)
  for cohort in cohorts:
    sent = []
    for k in cohort:
      w_k, v[k], alphas[k] = local_update(
          w, v[k], alphas[k], *clients[k], steps=steps, lr=lr, alpha_lr=alpha_lr,
          momentum=momentum)
      sent.append(w_k)
    w = fedavg.average(sent, fedavg.size_weights([clients[k] for k in cohort]))
  return w, v, alphas, [mixture(*own, w) for own in zip(alphas, v, strict=True)]
