"""The clients' own accuracies, from the worst client to the best."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure
import numpy as np

from hmm_jax.report import words
from hmm_jax.report.plots.curves import LIMITS
from hmm_jax.report.plots.lines import deviation
from hmm_jax.report.style import label_ends, look, new, short, styled, whole_numbers
from hmm_jax.tasks.metrics import lower_is_better

HEIGHT = 2.7  # inches


@styled
def clients(runs: Mapping[str, Sequence[dict]], title: str = '') -> Figure:
  """Draws each run's clients by their main test metric, sorted: mean and ± std over seeds.

  Args:
    runs: rows of clients.csv by name of the run; each seed's last evaluation is drawn.
    title: what was run.
  """
  kind = words.main(name for rows in runs.values() for row in rows for name in row)
  curves = {name: scores(rows, kind) for name, rows in runs.items()}
  seeds = max((len(one) for one in curves.values()), default=1)
  merged = ', after the final merge' if any(map(_are_merged, runs.values())) else ''
  figure = new(4.9, HEIGHT, title, f'clients of each seed by their {words.kind(kind)} on their own '
               f'test examples{merged}; {words.seeds_drawn(seeds)}')
  axes = figure.subplots()
  ends = []
  for place, (name, values) in enumerate(curves.items()):
    mean = _draw(axes, values, look(place), LIMITS.get(kind, (-np.inf, np.inf)))
    label = f'{short(name)}  mean {mean.mean():.3f}'
    ends.append((len(mean), mean[-1], label, look(place)['color']))
  low, high = axes.get_ylim()
  if LIMITS.get(kind) == (0, 1):
    axes.set_ylim(max(low, -0.02), min(high, 1.02))
  axes.set(xlabel='clients, the worst first', ylabel=words.kind(kind))
  axes.xaxis.set_major_locator(whole_numbers())
  axes.margins(x=0.02)
  label_ends(axes, ends, 0.85 * HEIGHT)
  return figure


def scores(rows: Sequence[dict], kind: str) -> np.ndarray:
  """Returns a test metric at each seed's last evaluation, worst first, [S, clients with examples].

  A seed that has been written in part, while a run trains, is left out.
  """
  last = last_evaluation(rows)
  by_seed = [sorted((row[f'test/{kind}'] for row in last
                     if row['seed'] == seed and f'test/{kind}' in row),
                    reverse=lower_is_better(kind))
             for seed in sorted({row['seed'] for row in last})]
  most = max(map(len, by_seed), default=0)
  return np.array([own for own in by_seed if len(own) == most])


def last_evaluation(rows: Iterable[dict]) -> list[dict]:
  """Returns the last row of each seed and client."""
  return [*{(row['seed'], row['client']): row for row in rows}.values()]


def _are_merged(rows: Sequence[dict]) -> bool:
  """Returns whether the last evaluation is the second of its round."""
  same = [row for row in rows if all(row[key] == rows[-1][key]
                                     for key in ('seed', 'client', 'round'))]
  return len(same) > 1


def _draw(axes, values, look, limits):
  """Draws one run as curves.py does its lines; returns the mean over seeds."""
  mean, std = values.mean(axis=0), deviation(values)
  band = np.clip([mean - std, mean + std], *limits)
  if len(mean) == 1:
    axes.errorbar([1], mean, np.abs(band - mean), fmt='o', capsize=3, color=look['color'])
    return mean
  place = np.arange(1, len(mean) + 1)
  axes.plot(place, mean, **look)
  if len(values) == 2:
    axes.plot(place, values.T, linewidth=0.7, alpha=0.6, color=look['color'])
  if len(values) > 2:
    axes.fill_between(place, *band, color=look['color'], alpha=0.18, linewidth=0)
  return mean
