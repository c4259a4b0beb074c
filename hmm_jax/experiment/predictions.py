"""Predictions for files, as a table and a CSV file."""

from collections.abc import Sequence
import csv
import os

import numpy as np

from hmm_jax.data import storage
from hmm_jax.experiment import export
from hmm_jax.experiment import inputs as inputs_of
from hmm_jax.experiment.predictor import Predictor
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

_SHOWN = 10  # rows on the screen
# Columns on the screen, by task; None for all.
SHOWN_COLUMNS = {'classification': 3, 'next_token': 3, 'multilabel': 2, 'regression': None}


def predict(path: str, inputs: str, screen: Screen, *, out: str = '',
            client: str | None = None, seed: int | None = None):
  """Predicts what a model's task says of inputs in files, and prints the first.

  Args:
    path: an exported folder, or the folder of a run.
    inputs: path of the file or the folder of images.
    screen: prints.
    out: path of a CSV file to write; '' for none.
    client, seed: as of `export.load`.

  Raises:
    InputError: a file can't be read, or does not go with the model.
    SaveError: the CSV file can't be written.
  """
  out = os.path.expanduser(out)
  check_new(out)
  model = export.load(path, client=client, seed=seed)
  given = inputs_of.read(inputs, model.about)
  for line in given.said:
    screen.say(line)
  try:
    predicted = model.predict(given.x)
  except InputError as error:
    raise InputError(f'got {inputs}: {error}') from error
  header, rows = table(model, given.names, predicted)
  count = f'{len(rows)} inputs' if len(rows) != 1 else '1 input'
  shown = SHOWN_COLUMNS[model.task] or len(header)
  screen.table(f'{count}, the first {_SHOWN}' if len(rows) > _SHOWN else count, header[:shown],
               [[x if isinstance(x, str) else f'{x:.4f}' for x in row[:shown]]
                for row in rows[:_SHOWN]])
  if out:
    write(out, header, rows)
    screen.say(f'wrote {out}')


def table(model: Predictor, names: Sequence[str],
          predicted: np.ndarray) -> tuple[list[str], list[list]]:
  """Returns the header and a row for each input: what is predicted, and how probable it is.

  Of a class or a next token, that is the most probable one, and the probabilities of all; of
  labels, those more probable than not, and the probabilities of all; or the targets.
  """
  each = predicted[:, -1] if model.task == 'next_token' else predicted
  if model.task == 'regression':
    return ['input', *model.names], [[name, *row] for name, row in zip(names, each.tolist())]
  probabilities = [f'p({name})' for name in model.names]
  if model.task == 'multilabel':
    labels = lambda row: ';'.join(name for name, p in zip(model.names, row) if p > 0.5)
    return ['input', 'labels', *probabilities], [
        [name, labels(row), *row] for name, row in zip(names, each.tolist())]
  best = each.argmax(axis=1)
  return ['input', 'class', 'probability', *probabilities], [
      [name, model.names[k], row[k], *row]
      for name, k, row in zip(names, best.tolist(), each.tolist())]


def check_new(out: str):
  """Raises InputError unless a file can be written that is not there yet."""
  if not out:
    return
  folder = os.path.dirname(os.path.abspath(out)) if '\0' not in out else ''
  if os.path.lexists(out) if folder else True:
    raise InputError(f'got --out={out}; expected the path of a new file')
  if not os.path.isdir(folder):
    raise InputError(f'got --out={out}, but there is no folder {folder}; expected one that exists')


def write(out: str, header: list[str], rows: list[list]):
  """Writes a table as CSV."""
  with storage.replacing(out) as new, open(new, 'w', newline='', encoding='utf-8') as file:
    lines = csv.writer(file, lineterminator='\n')
    lines.writerow(header)
    lines.writerows([x if isinstance(x, str) else f'{x:.8g}' for x in row] for row in rows)
