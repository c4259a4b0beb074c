"""Accuracy and loss of an algorithm's views, on the splits they belong to.

What a view is evaluated on follows from its name:
  clients   stacked: each client's own model on the client's own split
  locals    stacked: every client's model on the global split: mean over clients,
            accuracy also of the worst, `locals_min`, and of the best, `locals_max`
  any other one model on the global split; `global` also on each client's own
            split where the algorithm has no `clients` view

Metrics are named <view>/<split>/<metric>. A client mean is unweighted, over the
clients that hold a row of the split. Where there are `locals` and their `merged`
model, mergeability/<split>/gap is the mean loss of the former less that of the latter.
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
from hmm_jax.types import Array, Clients, Examples, Federation, Model, PyTree

STACKED = ('clients', 'locals')


def evaluator(model: Model, federation: Federation, examples: Examples, *,
              mapper: mappers.Mapper, sharding: Sharding, batch: int = 512) -> Callable:
  """Makes the evaluation of a whole federation, compiled once for each kind of view.

  Args:
    model: the network.
    federation: on the host; its validation and test splits are scored.
    examples: its examples, placed on the devices.
    mapper: how batches and clients are mapped.
    sharding: where models live and scores come back.
    batch: rows scored at a time.

  Returns:
    (views) -> {name: float}; splits without rows give no entry.
  """
  splits = {'validation': federation.validation, 'test': federation.test}
  needed = {name: np.unique(np.concatenate([split.rows, *_own_rows(split.clients)]))
            for name, split in splits.items()}

  @partial(jax.jit, out_shardings=sharding)
  def score(variables, examples, rows):
    """Scores one model on rows [T]: per-row correctness and loss."""
    return score_rows(model, mapper, variables, examples, rows, batch)

  @partial(jax.jit, out_shardings=sharding)
  def score_clients(stacked, examples, clients):
    """Scores K models on their own rows: sums over the rows, [K]."""
    work = lambda examples, one: _score_client(model, one[0], examples, one[1], batch)
    return mapper.each(work, examples, (stacked, clients), clients.size)

  @partial(jax.jit, out_shardings=sharding)
  def score_locals(stacked, examples, rows):
    """Scores K models on rows [T]: means [K]."""
    def work(shared, variables):
      scores = score_rows(model, mappers.one_by_one(), variables, *shared, batch)
      return [x.mean() for x in scores]

    return mapper.each(work, (examples, rows), stacked)

  def one_model(name, views, split_name, split):
    rows = needed[split_name]
    correct, loss = map(np.asarray, score(views[name], examples, rows))
    at = partial(np.searchsorted, rows)
    result = {}
    if len(split.rows):
      at_global = at(split.rows)
      result |= _named(name, split_name, correct[at_global].mean(), loss[at_global].mean())
    own = [at(r) for r in _own_rows(split.clients) if len(r)]
    if name == 'global' and 'clients' not in views and own:
      result |= _named('clients', split_name, np.mean([correct[r].mean() for r in own]),
                       np.mean([loss[r].mean() for r in own]))
    return result

  def stacked_models(name, views, split_name, split):
    if name == 'locals':
      if not len(split.rows):
        return {}
      correct, loss = map(np.asarray, score_locals(views[name], examples, split.rows))
      return _named(name, split_name, correct.mean(), loss.mean()) | {
          f'{name}_min/{split_name}/accuracy': float(correct.min()),
          f'{name}_max/{split_name}/accuracy': float(correct.max())}
    sums = map(np.asarray, score_clients(views[name], examples, split.clients))
    held = np.asarray(split.clients.size)
    if not held.any():
      return {}
    return _named(name, split_name, *((x[held > 0] / held[held > 0]).mean() for x in sums))

  def evaluate(views):
    metrics = {}
    for split_name, split in splits.items():
      for name in views:
        if len(needed[split_name]):
          score_view = stacked_models if name in STACKED else one_model
          metrics |= score_view(name, views, split_name, split)
      if {f'locals/{split_name}/loss', f'merged/{split_name}/loss'} <= metrics.keys():
        metrics[f'mergeability/{split_name}/gap'] = (
            metrics[f'locals/{split_name}/loss'] - metrics[f'merged/{split_name}/loss'])
    return metrics

  return evaluate


def _named(view: str, split: str, accuracy: float, loss: float) -> dict:
  return {f'{view}/{split}/accuracy': float(accuracy), f'{view}/{split}/loss': float(loss)}


def _own_rows(clients: Clients) -> list[np.ndarray]:
  return [np.asarray(index[:size]) for index, size in zip(clients.index, clients.size)]


def _score_batch(model, variables, batch):
  logits, _ = model.apply(variables, batch.x, mask=batch.mask)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
  return (logits.argmax(-1) == batch.y).astype(jnp.float32), loss


def score_rows(model: Model, mapper: mappers.Mapper, variables: PyTree, examples: Examples,
               rows: Array, batch: int) -> list[Array]:
  """Scores one model by mapping over batches of rows [T]: correctness and loss, [T] each."""
  width = min(batch, len(rows))
  batches = jnp.pad(rows, (0, -len(rows) % width)).reshape(-1, width)

  def work(shared, wanted):
    variables, examples = shared
    return _score_batch(model, variables, local.gather(examples, wanted, 0, width, width))

  scores = mapper.each(work, (variables, examples), batches)
  return [x.ravel()[:len(rows)] for x in scores]


def _score_client(model, variables, examples, client, batch):
  """Loops over one client's own batches: sums of correctness and loss."""
  width = min(batch, client.index.shape[0])
  rows = jnp.pad(client.index, (0, -client.index.shape[0] % width))

  def body(i, sums):
    minibatch = local.gather(examples, rows, i * width, width, client.size)
    scores = _score_batch(model, variables, minibatch)
    return [total + jnp.where(minibatch.mask, x, 0).sum() for total, x in zip(sums, scores)]

  return lax.fori_loop(0, -(-client.size // width), body, [jnp.float32(0), jnp.float32(0)])
