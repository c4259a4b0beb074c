"""Metrics as lines over rounds: which are drawn, and what they are."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hmm_jax.report import words
from hmm_jax.report.style import short

ALWAYS = (*words.MAIN, 'loss')  # That one of these stays what it is, is worth seeing.
# Our choice: nearly the curve of the plain mean; the tables have it.
NOT_DRAWN = 'clients_weighted/'


class Line(NamedTuple):
  """One metric of one run over rounds.

  after: the values after the final merge, [S]; empty if there was none, or it changed none.
  further: how much further than the last round the merge is marked.
  """

  label: str
  rounds: np.ndarray  # [N]
  values: np.ndarray  # [S, N]
  after: np.ndarray
  further: float = 0.0

  @property
  def last(self) -> float:
    """The mean over seeds at the end of the curve."""
    return float(self.values[:, -1].mean())

  @property
  def merged(self) -> float:
    """The mean over seeds after the final merge; NaN if there was none."""
    return float(self.after.mean()) if len(self.after) else np.nan


def kinds(rows: Sequence[dict]) -> dict[str, dict[str, list[str]]]:
  """Returns the metrics to draw: {kind: {split: [name]}}, test first.

  Those that some rows lack are left out, and what no round changes: the bytes of an AllReduce, or
  what only the final merge measures. The tables have them.
  """
  found = {}
  for name in rows[0] if rows else ():
    kind, split, _ = words.metric(name)
    if not (name in words.BOOKKEEPING or name.startswith(NOT_DRAWN)
            or any(row.get(name, '') == '' for row in rows)
            or (kind not in ALWAYS and not _changes(rows, name))):
      found.setdefault(kind, {}).setdefault(split, []).append(name)
  order = [*words.SPLITS, '']
  return {kind: dict(sorted(splits.items(), key=lambda item: order.index(item[0])))
          for kind, splits in sorted(found.items())}


def _changes(rows: Sequence[dict], name: str) -> bool:
  """Returns whether a metric of any seed changes from round to round, before a final merge."""
  before = {(row['seed'], row['round']): row for row in reversed(rows)}.values()
  seeds = {row['seed'] for row in rows}
  return len({(row['seed'], row[name]) for row in before}) > len(seeds)


def line(rows: Sequence[dict], name: str, label: str) -> Line:
  """Returns one metric of all seeds; the second row of a round is that after the final merge."""
  seeds = sorted({row['seed'] for row in rows})
  by_seed = [[row for row in rows if row['seed'] == seed] for seed in seeds]
  count = min(map(len, by_seed))
  rounds = np.array([row['round'] for row in by_seed[0][:count]])
  unit = words.unit(name)
  values = np.array([[row[name] / unit for row in own[:count]] for own in by_seed], float)
  values[~np.isfinite(values)] = np.nan  # Which is left out of any line.
  if count < 2 or rounds[-1] != rounds[-2]:
    return Line(label, rounds, values, values[:0, 0])
  return Line(label, rounds[:-1], values[:, :-1], changed(values[:, -2], values[:, -1]))


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
  """Returns the values after a final merge, [S]; none if they differ by rounding only."""
  same = np.allclose(after, before, rtol=1e-4, atol=0, equal_nan=True)
  return after[:0] if same else after


def of_run(rows: Sequence[dict], names: Sequence[str]) -> list[Line]:
  """Returns metrics of one run; those that are equal are one line."""
  found = {}
  for name in names:
    one = line(rows, name, words.metric(name).of)
    found.setdefault((one.values.tobytes(), one.after.tobytes()), []).append(one)
  return [same[0]._replace(label=' = '.join(one.label for one in same)) for same in found.values()]


def of_runs(runs: Mapping[str, Sequence[dict]], name: str) -> list[Line]:
  """Returns one metric of each run."""
  return [line(rows, name, short(run)) for run, rows in runs.items()]


def deviation(values: np.ndarray) -> np.ndarray:
  """Returns the sample standard deviation over seeds, [S, N] -> [N]; 0 for one seed."""
  return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
