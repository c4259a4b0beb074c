"""MLflow: in ./mlflow.db, or where MLFLOW_TRACKING_URI says."""

from collections.abc import Mapping
import os
import time

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from hmm_jax.report.trackers import Tracked

_PARAMS = 100  # that MLflow takes at a time
_LONGEST = 6000  # characters of a parameter, that MLflow takes


class Run:
  """One seed: an MLflow run found by its tags `run` and `seed`, or a new one.

  Rows that it has are counted by the points of `seconds`, which every row has.
  """

  def __init__(self, run: Tracked, seed: int):
    self._client = MlflowClient()
    experiment = _experiment(self._client, os.environ.get('MLFLOW_EXPERIMENT_NAME') or 'hmm_jax')
    tags = {'group': run.name, 'run': run.id, 'seed': str(seed)}
    found = self._client.search_runs(
        [experiment], f"tags.run = '{run.id}' and tags.seed = '{seed}'", max_results=1)
    made = found[0] if found else self._client.create_run(
        experiment, run_name=run.label(seed), tags=tags)
    self._id = made.info.run_id
    if found:
      self._client.update_run(self._id, 'RUNNING')
      self._begun = len(self._client.get_metric_history(self._id, 'seconds'))
    else:
      self._begun = 0
      params = [Param(key, str(value)[:_LONGEST]) for key, value in run.config.items()]
      for first in range(0, len(params), _PARAMS):
        self._client.log_batch(self._id, params=params[first:first + _PARAMS])
    self.place = f'mlflow ui --backend-store-uri={mlflow.get_tracking_uri()}'

  def write(self, number: int, row: Mapping[str, float]):
    if number >= self._begun:
      now = int(1000 * time.time())
      self._client.log_batch(self._id, [
          Metric(key, float(value), now, int(row['round']))
          for key, value in row.items() if key not in ('seed', 'round')])

  def close(self):
    self._client.set_terminated(self._id)


def _experiment(client: MlflowClient, name: str) -> str:
  """Returns the id of an experiment, made if need be."""
  found = client.get_experiment_by_name(name)
  return found.experiment_id if found else client.create_experiment(name)


open_seed = Run
