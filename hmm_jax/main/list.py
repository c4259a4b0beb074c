"""hmm_jax list: what there is to choose from."""

import json
import pathlib
from typing import Annotated

import typer

# Generated from the records by `python -m hmm_jax.experiment.reference`; reading it takes no JAX.
CATALOG = pathlib.Path(__file__).with_name('catalog.json')


def list(kind: Annotated[str, typer.Argument(
    metavar='KIND',
    help='methods, operators, datasets, models, tasks, partitions, topologies or settings')] = '',
         part: Annotated[str, typer.Argument(
             metavar='PREFIX', help="How names begin, such as `feddle.`; or a part of them; or "
             'a record of your own, FILE.py:RECORD, for its settings')] = ''):
  """List methods, operators, data sets, models, tasks, partitions, topologies or settings.

  Each with what it does, what it needs and its paper; settings with their meaning, default and
  values. Without a kind: how many there are.
  """
  from hmm_jax.report import catalog
  from hmm_jax.report.screen import Screen
  screen = Screen()
  if kind == 'settings' and ':' in part:
    from hmm_jax.experiment.catalog import own_settings
    catalog.show_rows(part, own_settings(part), screen)
    return
  known = json.loads(CATALOG.read_text(encoding='utf-8'))
  if kind:
    catalog.show(known, kind, part, screen)
  else:
    catalog.show_kinds(known, screen)
