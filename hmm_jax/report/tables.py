"""Result tables of a run and its comparison runs."""

from collections.abc import Iterable

from hmm_jax.report import words
from hmm_jax.report.screen import Screen

_MODELS = {'locals': 'locals, mean', 'clients': 'clients, mean on their own examples'}


def brief(summaries: dict[str, dict], screen: Screen):
  """Prints what went wrong, the costs, and last the main test metric of every run, small."""
  warn(summaries, screen)
  costs(next(iter(summaries.values())), screen)
  screen.table(f'test {_main(summaries)}{about_seeds(summaries.values())}',
               ['run', 'model', 'last round', 'selected on validation'], main_metrics(summaries))


def about_seeds(summaries: Iterable[dict]) -> str:
  """Says what is shown of several seeds, and what their spread leaves out; '' for one seed."""
  counts = sorted({len(summary['seeds']) for summary in summaries} - {1})
  if not counts:
    return ''
  return (f': mean ± std over {" or ".join(map(str, counts))} seeds, which share one partition of '
          'the data, so that its variance is left out')


def _main(summaries) -> str:
  """Returns the main metric of the runs."""
  return words.main(name for summary in summaries.values() for name in summary['last'])


def main_metrics(summaries: dict[str, dict]) -> list[list[str]]:
  """Returns one row per run and model: the last and the selected main test metric."""
  main = _main(summaries)
  rows = []
  for name, summary in summaries.items():
    selected = summary['selected_on_validation'] or {}
    for view in ('global', 'merged', 'locals', 'clients'):
      metric = f'{view}/test/{main}'
      if found := summary['last'].get(metric):
        best = selected.get(metric)
        rows.append([name, _MODELS.get(view, view), spread(found), spread(best) if best else ''])
  return rows


def show(summaries: dict[str, dict], screen: Screen):
  """Prints all metrics of the first run, and the main test metric of every run and seed."""
  name, summary = next(iter(summaries.items()))
  now = f'round {summary["rounds"]}'
  columns = {now: summary['last'], f'{now}, before the finish': summary.get('before_finish'),
             'selected on validation': summary['selected_on_validation']}
  columns = {title: values for title, values in columns.items() if values}
  screen.table(f'{name}, mean ± std over seeds', ['metric', *columns],
               [[metric, *(spread(v[metric]) if metric in v else '' for v in columns.values())]
                for metric in summary['last'] if metric not in words.BOOKKEEPING])
  seeds = [f'seed {seed}' for seed in summary['seeds']]
  main = _main(summaries)
  for title, header, rows in (
      (f'{main} on the global test split', ['model', now], of_global_models(summaries, main)),
      (f"{main} of each client's model on its own test examples",
       ['model', 'mean', 'selected', 'weighted by examples', 'worst tenth'],
       of_own_models(summaries, main))):
    if rows:
      screen.table(title, ['run', *header, *seeds], rows)
  if said := about_seeds(summaries.values()):
    screen.say(said.removeprefix(': '))
  warn(summaries, screen)
  costs(summary, screen)


def warn(summaries: dict[str, dict], screen: Screen):
  """Prints the warnings of every run."""
  for name, summary in summaries.items():
    for line in summary.get('warnings', ()):
      screen.say(f'warning: {name}: {line}')


def costs(summary: dict, screen: Screen):
  """Prints what a run took."""
  screen.say(f'trained {summary["train_seconds"]:.1f} s, compiled '
             f'{summary["compile_seconds"]:.1f} s, peak memory '
             f'{summary["peak_memory_bytes"] / 2**20:.0f} MiB, {summary["device"]}')


def show_arms(name: str, arms: dict[str, dict], seeds: Iterable[int], screen: Screen):
  """Prints the main test metric of a run's models, merged by several variants."""
  main = words.main(metric for values in arms.values() for metric in values)
  scores = {arm: values[f'global/test/{main}'] for arm, values in arms.items()}
  screen.table(f'{name}: {main} of the merged model on the global test split',
               ['variant', 'mean ± std', *(f'seed {seed}' for seed in seeds)],
               [[arm, spread(score), *seed_by_seed(score)] for arm, score in scores.items()])


def of_global_models(summaries: dict[str, dict], main: str) -> list[list[str]]:
  """Returns one row per run and model with a test metric, and one before the final merge."""
  rows = []
  for name, summary in summaries.items():
    before = summary.get('before_finish') or {}
    for when, values in (('', summary['last']), (', before', before)):
      for view in ('global', 'merged', 'locals'):
        if found := values.get(f'{view}/test/{main}'):
          rows.append([name, view + when, spread(found), *seed_by_seed(found)])
  return rows


def of_own_models(summaries: dict[str, dict], main: str) -> list[list[str]]:
  """Returns one row per run whose clients have test examples, and one before the final merge."""
  rows = []
  for name, summary in summaries.items():
    selected = summary['selected_on_validation'] or {}
    before = summary.get('before_finish') or {}
    # A run has one selected round, so it is shown only in the row of the last evaluation.
    for when, values, chosen in (('', summary['last'], selected), (', before', before, {})):
      means = [values.get(f'{view}/test/{main}', {})
               for view in ('clients', 'clients_weighted', 'clients_worst')]
      if all(means):
        best = chosen.get(f'clients/test/{main}')
        mean, *others = map(spread, means)
        rows.append([name, 'clients' + when, mean, spread(best) if best else '', *others,
                     *seed_by_seed(means[0])])
  return rows


def seed_by_seed(value: dict) -> list[str]:
  return [f'{v:.4f}' for v in value['seeds']]


def spread(value: dict) -> str:
  """Formats mean ± std over seeds; of one seed, which has no std, its value."""
  if len(value['seeds']) == 1:
    return f'{value["mean"]:z.4f}'
  return f'{value["mean"]:z.4f} ± {value["std"]:.4f}'
