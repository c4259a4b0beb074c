"""What is compared: runs over the same seeds, and their paired differences."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from hmm_jax.registry import suggestion
from hmm_jax.report import words
from hmm_jax.types import InputError

CONFIDENCE = 0.95
# What is compared unless a metric is named: the first of these that all runs have.
METRICS = tuple(f'{view}/test/{kind}' for kind in words.MAIN
                for view in ('global', 'merged', 'clients', 'locals'))
# Columns of rows that say where a run is, and not how good.
PLACES = ('round', 'seed', 'seconds', 'bytes', 'bytes_up', 'bytes_down')


class OneSeed(NamedTuple):
  """What a run has measured with one seed.

  rows:     of metrics.csv, with `bytes`, those sent by the clients and to them.
  selected: the row of the round that is best on validation data; None if nothing selects one.
  clients:  main test metric of each client's model at the last evaluation; empty if not measured.
  finished: whether the last row is of the same round, after a final merge.
  """

  rows: Sequence[Mapping[str, float]]
  selected: Mapping[str, float] | None
  clients: Sequence[float] = ()
  finished: bool = False


class Entry(NamedTuple):
  """A run, or several that differ only in their seeds, as one line of a comparison.

  name:      in tables and figures.
  seeds:     {(seed of the partition, seed of the training): what it measured}.
  criterion: the validation metric that selects a round.
  rounds:    that were asked for.
  about:     its data and their partition, in words.
  """

  name: str
  seeds: Mapping[tuple[int, int], OneSeed]
  criterion: str = ''
  rounds: int = 0
  about: str = ''

  @property
  def partitions(self) -> int:
    """How many partitions of the data the seeds have."""
    return len({partition for partition, _ in self.seeds})


class Spread(NamedTuple):
  """A mean over seeds; the sample standard deviation is None for one seed."""

  mean: float
  std: float | None


class Difference(NamedTuple):
  """Paired differences to another run, over the seeds that both have.

  mean: of the differences.
  low, high: its confidence interval by Student's t; None for one pair.
  pairs: how many seeds both have.
  higher: in how many of them the value is higher.
  """

  mean: float
  low: float | None
  high: float | None
  pairs: int
  higher: int


class Line(NamedTuple):
  """One run in the table of a comparison.

  last, selected: the metric in the last round, and in the one that is best on validation data.
  validation: the criterion in that round.
  difference: of `last`, to the first run; None of the first, or without a common seed.
  difference_selected: of `selected`.
  bytes: sent in all by one seed, on average; so are the seconds of training.
  """

  entry: Entry
  round: int
  last: Spread | None
  selected: Spread | None
  validation: Spread | None
  difference: Difference | None
  difference_selected: Difference | None
  bytes: float
  seconds: float


def choose_metric(entries: Sequence[Entry], wanted: str = '') -> str:
  """Returns the metric to compare: the one that is wanted, or the first of METRICS that all have.

  Raises:
    InputError: not all runs have it.
  """
  each = [set.intersection(*(set(seed.rows[-1]) for seed in entry.seeds.values())) - set(PLACES)
          for entry in entries]
  shared = set.intersection(*each)
  found = wanted if wanted else next((name for name in METRICS if name in shared), '')
  if found in shared:
    return found
  named = f'metric={wanted}' if wanted else f'runs without any of {", ".join(METRICS)} in common'
  lack = [entry.name for entry, has in zip(entries, each) if wanted and wanted not in has]
  where = f', which {", ".join(lack)} {"lacks" if len(lack) == 1 else "lack"}' if lack else ''
  raise InputError(f'got {named}{where}; expected one that all runs have: '
                   f'{", ".join(sorted(shared)) or "there is none"}' + suggestion(wanted, shared))


def compare(entries: Sequence[Entry], metric: str) -> list[Line]:
  """Returns the table of a comparison: each run beside the first."""
  return [_line(entry, entries[0], metric) for entry in entries]


def paired(values: Mapping, others: Mapping) -> Difference | None:
  """Returns the differences of values to others of the same seeds; None without a common one."""
  common = [seed for seed in values if seed in others]
  if not common:
    return None
  each = np.array([values[seed] - others[seed] for seed in common])
  mean, low, high = float(each.mean()), None, None
  if len(each) > 1:
    half = float(stdtrit(len(each) - 1, (1 + CONFIDENCE) / 2)
                 * each.std(ddof=1) / np.sqrt(len(each)))
    low, high = mean - half, mean + half
  return Difference(mean, low, high, len(each), int((each > 0).sum()))


def spread_of(values: Iterable[float]) -> Spread | None:
  """Returns the mean and the sample standard deviation; None of nothing."""
  values = np.array([*values], np.float64)
  if not len(values):
    return None
  return Spread(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)


def _line(entry: Entry, first: Entry, metric: str) -> Line:
  last, selected = (_values(entry, metric, which) for which in (_last, _selected))
  reference = [_values(first, metric, which) for which in (_last, _selected)]
  difference, at_selected = (
      None if entry is first else paired(own, other)
      for own, other in zip((last, selected), reference))
  ends = [seed.rows[-1] for seed in entry.seeds.values()]
  return Line(entry, int(min(row['round'] for row in ends)), spread_of(last.values()),
              spread_of(selected.values()),
              spread_of(_values(entry, entry.criterion, _selected).values()),
              difference, at_selected, *(
                  float(np.mean([row[name] for row in ends])) for name in ('bytes', 'seconds')))


def _last(seed: OneSeed):
  return seed.rows[-1]


def _selected(seed: OneSeed):
  return seed.selected or {}


def _values(entry, metric, which) -> dict:
  """Returns {seed: the metric in a row of it}; empty unless all seeds have it."""
  found = {key: which(seed)[metric] for key, seed in entry.seeds.items() if metric in which(seed)}
  return found if len(found) == len(entry.seeds) else {}


def chosen(lines: Sequence[Line]) -> Line | None:
  """Returns the run that is best on validation data; None if that can't be said.

  It can't where a run has no validation examples, or where runs select by different metrics.
  """
  if len({line.entry.criterion for line in lines}) != 1 or not all(
      line.validation for line in lines):
    return None
  return ranked(lines)[0]


def ranked(lines: Sequence[Line]) -> list[Line]:
  """Sorts runs by their validation metric, the best first; those without it come last."""
  def place(line):
    if line.validation is None or np.isnan(line.validation.mean):
      return np.inf
    loss = line.entry.criterion.endswith('loss')
    return line.validation.mean if loss else -line.validation.mean
  return sorted(lines, key=place)


def notes(lines: Sequence[Line]) -> list[str]:
  """Returns what a reader of the numbers must know, one sentence each."""
  said = [about_spread([line.entry for line in lines])]
  pairs = [line.difference for line in lines if line.difference]
  if pairs:
    several = any(pair.pairs > 1 for pair in pairs)
    said.append(
        f'Differences to {lines[0].entry.name} are paired over common seeds'
        + (f", with a {CONFIDENCE:.0%} confidence interval (Student's t)" if several else '')
        + ('.' if all(pair.pairs > 1 for pair in pairs) else '; one seed has no interval.'))
  return said + unfinished(lines)


def unfinished(lines: Sequence[Line]) -> list[str]:
  """Names the runs that are not at their end, in a sentence; none if all are."""
  short = [f'{line.entry.name} (round {line.round} of {line.entry.rounds})'
           for line in lines if line.round < line.entry.rounds]
  return [f'Not at the end: {", ".join(short)}.'] if short else []


def about_spread(entries: Sequence[Entry]) -> str:
  """Says over what ± is, and whether it includes the variance of partitions."""
  counts = sorted({len(entry.seeds) for entry in entries} - {1})
  if not counts:
    return 'One seed a run: there is no spread.'
  text = f'± is the standard deviation over {_range(counts)} seeds'
  partitions = sorted({entry.partitions for entry in entries if len(entry.seeds) > 1})
  if partitions == [1]:
    return f'{text}, which share one partition of the data: its variance is left out.'
  if 1 in partitions:
    shared = [entry.name for entry in entries if entry.partitions == 1 and len(entry.seeds) > 1]
    return (f'{text}; it includes the variance of partitions, but not where all seeds share one: '
            f'{", ".join(shared)}.')
  return f'{text} and {_range(partitions)} partitions of the data.'


def _range(counts: Sequence[int]) -> str:
  return str(counts[0]) if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'
