"""Evaluation of an algorithm's views: loss and metrics on the validation and test splits.

The name of a view determines its examples:
  clients   stacked, or a Mixture: each client's own model on the client's own split
  locals    stacked: every client's model on the global split: mean over clients,
            the task's main metric also of the worst, `locals_min`, and of the best, `locals_max`
  any other one model on the global split; `global` also on each client's own
            split where the algorithm has no `clients` view

Metrics are named <view>/<split>/<metric>. `clients` is the unweighted mean over the clients
that hold examples of the split; `clients_weighted` is weighted by their number of examples,
and `clients_worst` is the mean over the worst tenth of them, by the main metric. With views
`locals` and `merged`, mergeability/<split>/gap is the mean loss of the local models
minus the loss of the merged model.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import jax
from jax.sharding import Sharding
import numpy as np

from hmm_jax.experiment.scorers import programs
from hmm_jax.tasks.metrics import lower_is_better
from hmm_jax.types import Examples, Federation, Mapper, Model, Scores

STACKED = ('clients', 'locals')


def evaluator(model: Model, federation: Federation, examples: Examples, *,
              mapper: Mapper, sharding: Sharding, batch: int = 512,
              further: Mapping[str, Callable] = MappingProxyType({})) -> Callable:
  """Makes the evaluation function of a federation, compiled once for each kind of view.

  Args:
    model: the network.
    federation: on the host; its validation and test splits are scored.
    examples: its examples, placed on the devices.
    mapper: how batches and clients are mapped.
    sharding: sharding of models and scores.
    batch: examples scored at a time.
    further: metrics of predictions, {name: (y, predictions) -> float}, on the host.

  Returns:
    (views) -> Scores; empty splits give no entry.
  """
  splits = {'validation': federation.validation, 'test': federation.test}
  needed = {name: np.unique(np.concatenate([split.rows, *split.clients.valid()]))
            for name, split in splits.items()}
  task, y = model.task, np.asarray(federation.examples.y)
  metrics_of = lambda means: {**task.metrics(means), 'loss': means['loss']}

  run = programs(model, mapper, sharding, batch)

  def one_model(variables, split_name, split):
    """Returns the model's metrics on the global examples, and on each client's own, [K] each."""
    rows = needed[split_name]
    scores = jax.tree.map(np.asarray, run.score(variables, examples, rows))
    at = partial(np.searchsorted, rows)
    mean = lambda x, r: x[at(r)].mean(axis=0) if len(r) else np.full(x.shape[1:], np.nan)
    own = split.clients.valid()
    overall = metrics_of({name: mean(x, split.rows) for name, x in scores.items()})
    each = metrics_of({name: np.stack([mean(x, r) for r in own]) for name, x in scores.items()})
    if further:
      predicted = np.asarray(run.predict(variables, examples, rows))
      overall |= more(split.rows, lambda r: predicted[at(r)])
      each |= stacked_metrics([more(r, lambda r: predicted[at(r)]) for r in own])
    return overall, each

  def own_models(models, split):
    """Returns the metrics of each client's model on its own examples, [K] each."""
    held = np.asarray(split.clients.size)

    def mean(total):
      total = np.asarray(total, np.float64)
      count = held.reshape(-1, *[1] * (total.ndim - 1))
      return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)

    each = metrics_of(jax.tree.map(mean, run.score_clients(models, examples, split.clients)))
    if further:
      predicted = np.asarray(run.predict_clients(models, examples, split.clients))
      each |= stacked_metrics([more(r, lambda r, p=p: p[:len(r)]) for r, p in zip(
          split.clients.valid(), predicted)])
    return each

  def more(rows, predicted):
    """Returns the further metrics of the examples at `rows`; NaN where there are none."""
    return {name: metric(y[rows], predicted(rows)) if len(rows) else np.nan
            for name, metric in further.items()}

  def local_models(stacked, split_name, split):
    each = metrics_of(jax.tree.map(np.asarray, run.score_locals(stacked, examples, split.rows)))
    worst, best = (np.max, np.min) if lower_is_better(task.main) else (np.min, np.max)
    return _named('locals', split_name, {name: x.mean() for name, x in each.items()}) | {
        f'locals_min/{split_name}/{task.main}': float(worst(each[task.main])),
        f'locals_max/{split_name}/{task.main}': float(best(each[task.main]))}

  def evaluate(views):
    metrics, clients = {}, {}
    for split_name, split in splits.items():
      if not len(needed[split_name]):
        continue
      own = own_models(views['clients'], split) if 'clients' in views else None
      for name in (n for n in views if n not in STACKED):
        overall, each = one_model(views[name], split_name, split)
        if len(split.rows):
          metrics |= _named(name, split_name, overall)
        if name == 'global' and own is None:
          own = each
      if 'locals' in views and len(split.rows):
        metrics |= local_models(views['locals'], split_name, split)
      if own is not None and split.clients.size.any():
        held = np.asarray(split.clients.size)
        metrics |= _over_clients(split_name, own, held, task.main)
        clients |= {f'{split_name}/rows': held} | {
            f'{split_name}/{name}': x for name, x in own.items()}
      if {f'locals/{split_name}/loss', f'merged/{split_name}/loss'} <= metrics.keys():
        metrics[f'mergeability/{split_name}/gap'] = (
            metrics[f'locals/{split_name}/loss'] - metrics[f'merged/{split_name}/loss'])
    return Scores(metrics, clients)

  return evaluate


def stacked_metrics(each: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
  """Returns {metric: [K]} from those of each client."""
  return {name: np.array([one[name] for one in each]) for name in each[0]}


def _over_clients(split: str, own: Mapping[str, np.ndarray], rows: np.ndarray, main: str) -> dict:
  """Averages over clients with examples: equally, by number of examples, over the worst tenth.

  A client of whose examples a metric is undefined, NaN, is left out of that metric's means.
  """
  held = rows > 0
  own, rows = {name: x[held] for name, x in own.items()}, rows[held]
  order = np.argsort(-own[main] if lower_is_better(main) else own[main], kind='stable')
  worst = order[:-(-len(rows) // 10)]
  return (_named('clients', split, {name: _mean(x) for name, x in own.items()})
          | _named('clients_weighted', split, {name: _mean(x, rows) for name, x in own.items()})
          | _named('clients_worst', split, {name: _mean(x[worst]) for name, x in own.items()}))


def _mean(x: np.ndarray, weights: np.ndarray | None = None) -> float:
  known = ~np.isnan(x)
  if not known.any():
    return np.nan
  if weights is None:
    return x[known].mean()
  return x[known] @ weights[known] / weights[known].sum()


def _named(view: str, split: str, metrics: Mapping[str, float]) -> dict:
  return {f'{view}/{split}/{name}': float(value) for name, value in metrics.items()}
