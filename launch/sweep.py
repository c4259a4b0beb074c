"""Trains once for each value of one setting, then prints one table.

  python launch/sweep.py KEY VALUE... [-- flags of hmm_jax.main...]
  python launch/sweep.py local.lr 0.01 0.05 0.1 -- --config.rounds=50

A value's run lives in WORKDIR/VALUE, where --workdir=WORKDIR is one of the flags and
runs/sweep-KEY its default. Run it again to resume: finished values are only read.
Choose a value by the validation column, never by the test columns.
"""

from collections.abc import Sequence
import json
import os
import subprocess
import sys

from hmm_jax.report.screen import Screen

# The test accuracy of the first view that the algorithm has.
TEST = ('global/test/accuracy', 'locals/test/accuracy', 'clients/test/accuracy')
VALIDATION = ('global/validation/accuracy', 'clients/validation/accuracy')


def main(argv: Sequence[str]) -> int:
  """Runs the sweep; returns the exit code of the first run that failed, or 0."""
  split = argv.index('--') if '--' in argv else len(argv)
  (key, *values), options = argv[:split] or [''], argv[split + 1:]
  if not values:
    print('sweep.py: got no values; expected KEY VALUE... [-- flags of hmm_jax.main...]',
          file=sys.stderr)
    return 2
  flags = [option for option in options if not option.startswith('--workdir=')]
  folders = [option.partition('=')[2] for option in options if option not in flags]
  folder = folders[-1] if folders else os.path.join('runs', f'sweep-{key}')

  codes, rows = [], []
  for value in values:
    workdir = os.path.join(folder, value.replace('/', '_'))
    code = subprocess.run([sys.executable, '-m', 'hmm_jax.main', f'--workdir={workdir}',
                           f'--config.{key}={value}', *flags], check=False).returncode
    codes.append(code)
    if code == 2:  # Bad input: it has said what.
      break
    rows.append([value, *(figures(workdir) if code == 0 else [f'exit code {code}', '', ''])])
  if rows:
    Screen().table(
        f'{key}: accuracy, mean ± std over seeds',
        [key, 'test, last round', 'test, selected on validation', 'validation, selected'], rows)
  return next((code for code in codes if code), 0)


def figures(workdir: str) -> list[str]:
  """Returns a finished run's test accuracies, last and selected, and validation accuracy."""
  with open(os.path.join(workdir, 'summary.json')) as f:
    summary = json.load(f)
  last, selected = summary['last'], summary['selected_on_validation'] or {}
  return [spread(last, TEST), spread(selected, TEST), spread(selected, VALIDATION)]


def spread(metrics: dict, names: Sequence[str]) -> str:
  """Formats the first of the named metrics that there is."""
  value = next((metrics[name] for name in names if name in metrics), None)
  return f'{value["mean"]:.4f} ± {value["std"]:.4f}' if value else ''


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
