"""Evaluation of an algorithm's views: accuracy and loss on the validation and test splits.

The name of a view determines its examples:
  clients   stacked, or a Mixture: each client's own model on the client's own split
  locals    stacked: every client's model on the global split: mean over clients,
            accuracy also of the worst, `locals_min`, and of the best, `locals_max`
  any other one model on the global split; `global` also on each client's own
            split where the algorithm has no `clients` view

Metrics are named <view>/<split>/<metric>. `clients` is the unweighted mean over the clients
that hold examples of the split; `clients_weighted` is weighted by their number of examples,
and `clients_worst` is the mean over the worst tenth of them, by accuracy. With views
`locals` and `merged`, mergeability/<split>/gap is the mean loss of the local models
minus the loss of the merged model.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Sharding
import numpy as np

from hmm_jax.client import local, mappers
from hmm_jax.client.scoring import logits, score_batch, score_rows
from hmm_jax.types import (
  Examples,
  Federation,
  Mapper,
  Mixture,
  Model,
  Scores,
)

STACKED = ('clients', 'locals')


def evaluator(model: Model, federation: Federation, examples: Examples, *,
              mapper: Mapper, sharding: Sharding, batch: int = 512) -> Callable:
  """Makes the evaluation function of a federation, compiled once for each kind of view.

  Args:
    model: the network.
    federation: on the host; its validation and test splits are scored.
    examples: its examples, placed on the devices.
    mapper: how batches and clients are mapped.
    sharding: sharding of models and scores.
    batch: examples scored at a time.

  Returns:
    (views) -> Scores; empty splits give no entry.
  """
  splits = {'validation': federation.validation, 'test': federation.test}
  needed = {name: np.unique(np.concatenate([split.rows, *split.clients.valid()]))
            for name, split in splits.items()}

  @partial(jax.jit, out_shardings=sharding)
  def score(variables, examples, rows):
    """Scores one model on the examples at `rows` [T]: correctness and loss of each."""
    return score_rows(model, mapper, variables, examples, rows, batch)

  @partial(jax.jit, out_shardings=sharding)
  def score_clients(models, examples, clients):
    """Scores K models on their own examples: sums of correctness and loss, [K]."""
    if isinstance(models, Mixture):
      shared, own = models
      predict = partial(_mixed_log_probabilities, model)
    else:
      shared, own = (), models
      predict = lambda shared, own, batch: logits(model, own, batch)

    def work(given, one):
      shared, examples = given
      own, client = one
      return _score_client(partial(predict, shared, own), examples, client, batch)

    return mapper.each(work, (shared, examples), (own, clients), clients.size)

  @partial(jax.jit, out_shardings=sharding)
  def score_locals(stacked, examples, rows):
    """Scores K models on the examples at `rows` [T]: mean accuracy and loss, [K]."""
    def work(shared, variables):
      scores = score_rows(model, mappers.one_by_one(), variables, *shared, batch)
      return [x.mean() for x in scores]

    return mapper.each(work, (examples, rows), stacked)

  def one_model(variables, split_name, split):
    """Returns the model's scores: of each global example, and means on each client's examples."""
    rows = needed[split_name]
    scores = list(map(np.asarray, score(variables, examples, rows)))
    at = partial(np.searchsorted, rows)
    own = np.array([[x[at(r)].mean() if len(r) else np.nan for x in scores]
                    for r in split.clients.valid()])
    return [x[at(split.rows)] for x in scores], own.T

  def own_models(models, split):
    """Returns accuracy and mean loss of each client's model on its own examples."""
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
        overall, each = one_model(views[name], split_name, split)
        if len(split.rows):
          metrics |= _named(name, split_name, *(x.mean() for x in overall))
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
  """Averages over clients with examples: equally, by number of examples, over the worst tenth."""
  held = rows > 0
  accuracy, loss, rows = accuracy[held], loss[held], rows[held]
  worst = np.argsort(accuracy, kind='stable')[:-(-len(rows) // 10)]
  return (_named('clients', split, accuracy.mean(), loss.mean())
          | _named('clients_weighted', split, *(x @ rows / rows.sum() for x in (accuracy, loss)))
          | _named('clients_worst', split, accuracy[worst].mean(), loss[worst].mean()))


def _named(view: str, split: str, accuracy: float, loss: float) -> dict:
  return {f'{view}/{split}/accuracy': float(accuracy), f'{view}/{split}/loss': float(loss)}


def _mixed_log_probabilities(model, models, weights, batch):
  """Returns the logarithm of a weighted mean of M models' probabilities, [B, C]."""
  each = lax.map(lambda variables: logits(model, variables, batch), models)
  log_weights = jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny))[:, None, None]
  return jax.nn.logsumexp(jax.nn.log_softmax(each) + log_weights, axis=0)


def _score_client(predict, examples, client, batch):
  """Returns the sums of correctness and loss over one client's examples, in batches."""
  width = min(batch, client.index.shape[0])
  rows = jnp.pad(client.index, (0, -client.index.shape[0] % width))

  def body(i, sums):
    minibatch = local.gather(examples, rows, i * width, width, client.size)
    scores = score_batch(predict, minibatch)
    return [total + jnp.where(minibatch.mask, x, 0).sum() for total, x in zip(sums, scores)]

  return lax.fori_loop(0, -(-client.size // width), body, [jnp.float32(0), jnp.float32(0)])
