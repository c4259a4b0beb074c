"""Result tables of a run and its comparison runs."""

from collections.abc import Iterable

from hmm_jax.report.screen import Screen
from hmm_jax.report.words import BOOKKEEPING


def show(summaries: dict[str, dict], screen: Screen):
  """Prints all metrics of the first run, and the test accuracies of every run and seed."""
  name, summary = next(iter(summaries.items()))
  now = f'round {summary["rounds"]}'
  columns = {now: summary['last'], f'{now}, before the finish': summary.get('before_finish'),
             'selected on validation': summary['selected_on_validation']}
  columns = {title: values for title, values in columns.items() if values}
  screen.table(f'{name}, mean ± std over seeds', ['metric', *columns],
               [[metric, *(spread(v[metric]) if metric in v else '' for v in columns.values())]
                for metric in summary['last'] if metric not in BOOKKEEPING])
  seeds = [f'seed {seed}' for seed in summary['seeds']]
  for title, header, rows in (
      ('accuracy on the global test split', ['model', now], global_accuracies(summaries)),
      ("accuracy of each client's model on its own test examples",
       ['model', 'mean', 'selected', 'weighted by examples', 'worst tenth'],
       own_accuracies(summaries))):
    if rows:
      screen.table(title, ['run', *header, *seeds], rows)
  for name, of_run in summaries.items():
    for line in of_run.get('warnings', ()):
      screen.say(f'warning: {name}: {line}')
  screen.say(f'trained {summary["train_seconds"]:.1f} s, compiled '
             f'{summary["compile_seconds"]:.1f} s, peak memory '
             f'{summary["peak_memory_bytes"] / 2**20:.0f} MiB, {summary["device"]}')


def show_arms(name: str, arms: dict[str, dict], seeds: Iterable[int], screen: Screen):
  """Prints the test accuracies of a run's models, merged by several variants."""
  scores = {arm: values['global/test/accuracy'] for arm, values in arms.items()}
  screen.table(f'{name}: accuracy of the merged model on the global test split',
               ['variant', 'mean ± std', *(f'seed {seed}' for seed in seeds)],
               [[arm, spread(score), *seed_by_seed(score)] for arm, score in scores.items()])


def global_accuracies(summaries: dict[str, dict]) -> list[list[str]]:
  """Returns one row per run and model with a test accuracy, and one before the final merge."""
  rows = []
  for name, summary in summaries.items():
    before = summary.get('before_finish') or {}
    for when, values in (('', summary['last']), (', before', before)):
      for view in ('global', 'merged', 'locals'):
        if found := values.get(f'{view}/test/accuracy'):
          rows.append([name, view + when, spread(found), *seed_by_seed(found)])
  return rows


def own_accuracies(summaries: dict[str, dict]) -> list[list[str]]:
  """Returns one row per run whose clients have test examples, and one before the final merge."""
  rows = []
  for name, summary in summaries.items():
    selected = summary['selected_on_validation'] or {}
    before = summary.get('before_finish') or {}
    # A run has one selected round, so it is shown only in the row of the last evaluation.
    for when, values, chosen in (('', summary['last'], selected), (', before', before, {})):
      means = [values.get(f'{view}/test/accuracy', {})
               for view in ('clients', 'clients_weighted', 'clients_worst')]
      if all(means):
        best = chosen.get('clients/test/accuracy')
        mean, *others = map(spread, means)
        rows.append([name, 'clients' + when, mean, spread(best) if best else '', *others,
                     *seed_by_seed(means[0])])
  return rows


def seed_by_seed(value: dict) -> list[str]:
  return [f'{v:.4f}' for v in value['seeds']]


def spread(value: dict) -> str:
  """Formats mean ± std over seeds; of one seed, which has no std, its value."""
  if len(value['seeds']) == 1:
    return f'{value["mean"]:.4f}'
  return f'{value["mean"]:.4f} ± {value["std"]:.4f}'
