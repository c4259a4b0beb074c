"""Predictions for files, as a table and a CSV file."""

import csv
import os

import numpy as np

from hmm_jax import storage
from hmm_jax.experiment import export
from hmm_jax.experiment import inputs as inputs_of
from hmm_jax.report.screen import Screen
from hmm_jax.types import InputError

_SHOWN = 10  # rows on the screen


def predict(path: str, inputs: str, screen: Screen, *, out: str = '',
            client: str | None = None, seed: int | None = None):
  """Predicts the classes of inputs in files, and prints the first.

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
    probabilities = model.predict(given.x)
  except InputError as error:
    raise InputError(f'got {inputs}: {error}') from error
  best = probabilities.argmax(axis=1)
  rows = [[name, model.names[k], row[k]] for name, k, row in zip(
      given.names, best.tolist(), probabilities, strict=True)]
  count = f'{len(rows)} inputs' if len(rows) != 1 else '1 input'
  screen.table(f'{count}, the first {_SHOWN}' if len(rows) > _SHOWN else count,
               ['input', 'class', 'probability'],
               [[name, label, f'{value:.4f}'] for name, label, value in rows[:_SHOWN]])
  if out:
    write(out, model.names, rows, probabilities)
    screen.say(f'wrote {out}')


def check_new(out: str):
  """Raises InputError unless a file can be written that is not there yet."""
  if not out:
    return
  folder = os.path.dirname(os.path.abspath(out)) if '\0' not in out else ''
  if os.path.lexists(out) if folder else True:
    raise InputError(f'got --out={out}; expected the path of a new file')
  if not os.path.isdir(folder):
    raise InputError(f'got --out={out}, but there is no folder {folder}; expected one that exists')


def write(out: str, names: tuple[str, ...], rows: list[list], probabilities: np.ndarray):
  """Writes a row for each input: its class, and the probabilities of all classes."""
  with storage.replacing(out) as new, open(new, 'w', newline='', encoding='utf-8') as file:
    table = csv.writer(file, lineterminator='\n')
    table.writerow(['input', 'class', 'probability', *(f'p({name})' for name in names)])
    for row, each in zip(rows, probabilities.tolist(), strict=True):
      table.writerow([*row[:2], *(f'{value:.8g}' for value in [row[2], *each])])
