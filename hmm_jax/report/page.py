"""One self-contained page about runs: what was run, curves to hover over, tables, costs."""

from collections.abc import Mapping, Sequence
import os
from typing import Any, NamedTuple

import jinja2
import markupsafe
import numpy as np

from hmm_jax.data import storage
from hmm_jax.report import words
from hmm_jax.report.plots import clients, curves, lines
from hmm_jax.report.style import Figure, look
from hmm_jax.report.svg import frame, inline, themed
from hmm_jax.report.tables import spread

# Of several runs, the first of these that all have is compared.
COMMON = tuple(f'{view}/test/{kind}' for kind in words.MAIN
               for view in ('global', 'merged', 'clients', 'locals'))


class Told(NamedTuple):
  """What the page says of one run.

  facts:    (what, words) pairs: method, paper, data, partition ...
  changed:  settings that differ from the defaults: key, value, default, meaning.
  metrics:  rows of metrics.csv.
  clients:  rows of clients.csv.
  figures:  those that are no learning curves, by name.
  summary:  the content of summary.json, or of an unfinished run what is known of it.
  """

  name: str
  title: str
  state: str
  facts: Sequence[tuple[str, str]]
  changed: Sequence[tuple]
  command: str
  metrics: Sequence[dict]
  clients: Sequence[dict]
  figures: Mapping[str, Figure]
  summary: Mapping[str, Any]


class Picture(NamedTuple):
  """A figure of the page; `data` is what hovering shows, None for a still one."""

  heading: str
  svg: markupsafe.Markup
  data: dict | None = None


def write(runs: Sequence[Told], path: str):
  """Writes the page about some runs, the first of which the others are compared with."""
  with storage.replacing(path) as new, open(new, 'w', encoding='utf-8') as file:
    file.write(render(runs))


def render(runs: Sequence[Told]) -> str:
  """Returns the page as HTML; whatever a run is called is escaped."""
  templates = jinja2.Environment(
      autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
      loader=jinja2.FileSystemLoader(os.path.dirname(__file__)))
  return templates.get_template('page.html').render(
      title=' and '.join([*[run.name for run in runs][:3], *(['others'] if len(runs) > 3 else [])]),
      common=_common(runs) if len(runs) > 1 else None,
      runs=[_section(run, f'r{place}') for place, run in enumerate(runs)])


def _section(run: Told, name: str) -> dict:
  """Returns what the template needs of one run."""
  shown = lines.kinds(run.metrics)
  first = [kind for kind in (*words.MAIN, 'loss') if kind in shown]
  pictures = {kind: [
      hovering(lines.of_run(run.metrics, metrics), kind, _heading(kind, split),
               f'{name}{kind}{split}') for split, metrics in splits.items()]
      for kind, splits in shown.items()}
  return run._asdict() | {
      'id': name,
      'curves': [picture for kind in first for picture in pictures.pop(kind)],
      'diagnostics': [picture for of_kind in pictures.values() for picture in of_kind],
      'stills': [still(figure, words.FIGURES.get(which, words.spoken(which)),
                       f'{name}{which.replace("/", "")}')
                 for which, figure in run.figures.items()],
      'table': table(run.summary), 'costs': costs(run.summary),
      'versions': run.summary.get('versions', {}), 'warnings': run.summary.get('warnings', ())}


def _heading(kind: str, split: str) -> str:
  return ', '.join(filter(None, [words.kind(kind), words.SPLITS.get(split)]))


def _common(runs: Sequence[Told]) -> dict:
  """Returns what the template needs of all runs together."""
  metrics = {run.name: run.metrics for run in runs}
  found = next((name for name in COMMON if all(
      name in row for rows in metrics.values() for row in rows)), None)
  own = {run.name: run.clients for run in runs
         if any(f'test/{kind}' in row for row in run.clients for kind in words.MAIN)}
  pictures = []
  if found:
    kind, heading = words.metric(found).kind, words.sentence(found)
    pictures.append(hovering(lines.of_runs(metrics, found), kind, heading, 'common'))
  if own:
    pictures.append(still(clients.clients(own), words.FIGURES['clients'], 'commonclients'))
  return {'curves': pictures, 'metric': words.sentence(found) if found else '',
          'rows': [[run.name, run.state, *(
              spread(values[found]) if found and found in (values := run.summary.get(of) or {})
              else '' for of in ('last', 'selected_on_validation'))] for run in runs]}


def hovering(drawn: Sequence[lines.Line], kind: str, heading: str, name: str) -> Picture:
  """Returns curves whose values are shown at the round nearest to the pointer."""
  figure = curves.panels({'': drawn}, kind)
  svg = inline(figure, name)
  numbers = lambda values: [float(f'{v:.5g}') if np.isfinite(v) else None for v in values]
  data = {'frame': list(map(float, frame(figure))), 'lines': [
      {'label': one.label, 'color': themed(look(place)['color']),
       'rounds': one.rounds.tolist(), 'mean': numbers(one.values.mean(axis=0)),
       'std': numbers(lines.deviation(one.values)) if len(one.values) > 1 else None,
       'merged': numbers([one.merged])[0]} for place, one in enumerate(drawn)]}
  return Picture(heading, markupsafe.Markup(svg), data)


def still(figure: Figure, heading: str, name: str) -> Picture:
  """Returns a figure that is only looked at."""
  return Picture(heading, markupsafe.Markup(inline(figure, name)))


def table(summary: Mapping[str, Any]) -> dict:
  """Returns the header and the rows of the table of all metrics, mean ± std over seeds."""
  columns = {f'round {summary["rounds"]}': summary['last'],
             'before the final merge': summary.get('before_finish'),
             'selected on validation': summary.get('selected_on_validation')}
  columns = {title: values for title, values in columns.items() if values}
  return {'header': ['metric', *columns], 'rows': [
      [words.sentence(name), *(_spread(v[name], words.unit(name)) if name in v else ''
                               for v in columns.values())]
      for name in sorted(summary['last'], key=_place) if name not in words.BOOKKEEPING]}


def _place(name: str) -> tuple[int, ...]:
  """Returns where a metric stands in the table: as in the curves, accuracies on test first."""
  orders = (lines.ALWAYS, [*words.SPLITS], [*words.VIEWS.values()])
  return tuple(order.index(value) if value in order else len(order)
               for value, order in zip(words.metric(name), orders))


def _spread(value: Mapping[str, Any], unit: float) -> str:
  seeds = [v / unit for v in value['seeds']]
  return spread({'mean': value['mean'] / unit, 'std': value['std'] / unit, 'seeds': seeds})


def costs(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns (what, figure) pairs; bytes are those of all clients together."""
  mean = lambda name: summary['last'].get(name, {}).get('mean', 0.0) / 1e6
  found = [('training', f'{summary["train_seconds"]:.1f} s'),
           ('sent by clients', f'{mean("bytes_up"):,.2f} MB'),
           ('sent to clients', f'{mean("bytes_down"):,.2f} MB')]
  if 'compile_seconds' in summary:
    found[1:1] = [('compiling', f'{summary["compile_seconds"]:.1f} s'),
                  ('last process, in all', f'{summary.get("wall_seconds", 0):.1f} s')]
  if 'peak_memory_bytes' in summary:
    found.append(('peak memory', f'{summary["peak_memory_bytes"] / 1e6:,.0f} MB'))
  if 'device' in summary:
    found.append(('device', str(summary['device'])))
  return found
