"""Accuracy and loss of an algorithm's views, on the splits they belong to.

What a view is evaluated on follows from its name:
  clients   stacked, or a Mixture: each client's own model on the client's own split
  locals    stacked: every client's model on the global split: mean over clients,
            accuracy also of the worst, `locals_min`, and of the best, `locals_max`
  any other one model on the global split; `global` also on each client's own
            split where the algorithm has no `clients` view

Metrics are named <view>/<split>/<metric>. A client mean, `clients`, is unweighted, over
the clients that hold a row of the split; `clients_weighted` weighs them by these rows, and
`clients_worst` is the mean over the worst tenth of them, by accuracy. Where there are
`locals` and their `merged` model, mergeability/<split>/gap is the mean loss of the former
less that of the latter.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Sharding
import numpy as np
import optax

from hmm_jax.client import local, mappers
from hmm_jax.types import (
  Array,
  Clients,
  Examples,
  Federation,
  Mapper,
  Mixture,
  Model,
  PyTree,
  Scores,
)

STACKED = ('clients', 'locals')


def evaluator(model: Model, federation: Federation, examples: Examples, *,
              mapper: Mapper, sharding: Sharding, batch: int = 512) -> Callable:
  """Makes the evaluation of a whole federation, compiled once for each kind of view.

  Args:
    model: the network.
    federation: on the host; its validation and test splits are scored.
    examples: its examples, placed on the devices.
    mapper: how batches and clients are mapped.
    sharding: where models live and scores come back.
    batch: rows scored at a time.

  Returns:
    (views) -> Scores; splits without rows give no entry.
  """
  splits = {'validation': federation.validation, 'test': federation.test}
  needed = {name: np.unique(np.concatenate([split.rows, *_own_rows(split.clients)]))
            for name, split in splits.items()}

  @partial(jax.jit, out_shardings=sharding)
  def score(variables, examples, rows):
    """Scores one model on rows [T]: per-row correctness and loss."""
    return score_rows(model, mapper, variables, examples, rows, batch)

  @partial(jax.jit, out_shardings=sharding)
  def score_clients(models, examples, clients):
    """Scores K models on their own rows: sums over the rows, [K]."""
    if isinstance(models, Mixture):
      shared, own = models
      predict = partial(_mixed_log_probabilities, model)
    else:
      shared, own = (), models
      predict = lambda shared, own, batch: _logits(model, own, batch)

    def work(given, one):
      shared, examples = given
      own, client = one
      return _score_client(partial(predict, shared, own), examples, client, batch)

    return mapper.each(work, (shared, examples), (own, clients), clients.size)

  @partial(jax.jit, out_shardings=sharding)
  def score_locals(stacked, examples, rows):
    """Scores K models on rows [T]: means [K]."""
    def work(shared, variables):
      scores = score_rows(model, mappers.one_by_one(), variables, *shared, batch)
      return [x.mean() for x in scores]

    return mapper.each(work, (examples, rows), stacked)

  def one_model(variables, split_name, split):
    """Returns the model's correctness and loss on the global rows, and on each client's."""
    rows = needed[split_name]
    scores = list(map(np.asarray, score(variables, examples, rows)))
    at = partial(np.searchsorted, rows)
    own = np.array([[x[at(r)].mean() if len(r) else np.nan for x in scores]
                    for r in _own_rows(split.clients)])
    return [x[at(split.rows)] for x in scores], own.T

  def own_models(models, split):
    """Returns the mean correctness and loss of each client's model on its own rows."""
    held = np.asarray(split.clients.size)
    sums = [np.asarray(x, np.float64) for x in score_clients(models, examples, split.clients)]
    return [np.divide(x, held, out=np.full(len(held), np.nan), where=held > 0) for x in sums]

  def local_models(stacked, split_name, split):
    correct, loss = map(np.asarray, score_locals(stacked, examples, split.rows))
    return _named('locals', split_name, correct.mean(), loss.mean()) | {
        f'locals_min/{split_name}/accuracy': float(correct.min()),
        f'locals_max/{split_name}/accuracy': float(correct.max())}

  def evaluate(views):
    metrics, clients = {}, {}
    for split_name, split in splits.items():
      if not len(needed[split_name]):
        continue
      own = own_models(views['clients'], split) if 'clients' in views else None
      for name in (n for n in views if n not in STACKED):
        everybody, each = one_model(views[name], split_name, split)
        if len(split.rows):
          metrics |= _named(name, split_name, *(x.mean() for x in everybody))
        if name == 'global' and own is None:
          own = each
      if 'locals' in views and len(split.rows):
        metrics |= local_models(views['locals'], split_name, split)
      if own is not None and split.clients.size.any():
        metrics |= _over_clients(split_name, *own, np.asarray(split.clients.size))
        clients |= {f'{split_name}/rows': np.asarray(split.clients.size),
                    f'{split_name}/accuracy': own[0], f'{split_name}/loss': own[1]}
      if {f'locals/{split_name}/loss', f'merged/{split_name}/loss'} <= metrics.keys():
        metrics[f'mergeability/{split_name}/gap'] = (
            metrics[f'locals/{split_name}/loss'] - metrics[f'merged/{split_name}/loss'])
    return Scores(metrics, clients)

  return evaluate


def _over_clients(split: str, accuracy: np.ndarray, loss: np.ndarray, rows: np.ndarray) -> dict:
  """Averages over the clients with rows: equally, by rows, and over the worst tenth."""
  held = rows > 0
  accuracy, loss, rows = accuracy[held], loss[held], rows[held]
  worst = np.argsort(accuracy, kind='stable')[:-(-len(rows) // 10)]
  return (_named('clients', split, accuracy.mean(), loss.mean())
          | _named('clients_weighted', split, *(x @ rows / rows.sum() for x in (accuracy, loss)))
          | _named('clients_worst', split, accuracy[worst].mean(), loss[worst].mean()))


def _named(view: str, split: str, accuracy: float, loss: float) -> dict:
  return {f'{view}/{split}/accuracy': float(accuracy), f'{view}/{split}/loss': float(loss)}


def _own_rows(clients: Clients) -> list[np.ndarray]:
  return [np.asarray(index[:size]) for index, size in zip(clients.index, clients.size)]


def _logits(model, variables, batch):
  return model.apply(variables, batch.x, mask=batch.mask)[0]


def _mixed_log_probabilities(model, models, weights, batch):
  """Returns the logarithm of a weighted mean of M models' probabilities, [B, C]."""
  logits = lax.map(lambda variables: _logits(model, variables, batch), models)
  log_weights = jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny))[:, None, None]
  return jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_weights, axis=0)


def _score_batch(predict, batch):
  logits = predict(batch)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
  return (logits.argmax(-1) == batch.y).astype(jnp.float32), loss


def score_rows(model: Model, mapper: Mapper, variables: PyTree, examples: Examples,
               rows: Array, batch: int) -> list[Array]:
  """Scores one model by mapping over batches of rows [T]: correctness and loss, [T] each."""
  width = min(batch, len(rows))
  batches = jnp.pad(rows, (0, -len(rows) % width)).reshape(-1, width)

  def work(shared, wanted):
    variables, examples = shared
    minibatch = local.gather(examples, wanted, 0, width, width)
    return _score_batch(partial(_logits, model, variables), minibatch)

  scores = mapper.each(work, (variables, examples), batches)
  return [x.ravel()[:len(rows)] for x in scores]


def _score_client(predict, examples, client, batch):
  """Loops over one client's own batches: sums of correctness and loss."""
  width = min(batch, client.index.shape[0])
  rows = jnp.pad(client.index, (0, -client.index.shape[0] % width))

  def body(i, sums):
    minibatch = local.gather(examples, rows, i * width, width, client.size)
    scores = _score_batch(predict, minibatch)
    return [total + jnp.where(minibatch.mask, x, 0).sum() for total, x in zip(sums, scores)]

  return lax.fori_loop(0, -(-client.size // width), body, [jnp.float32(0), jnp.float32(0)])
