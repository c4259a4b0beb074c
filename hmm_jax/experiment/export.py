"""Takes models out of a run, and loads what was taken: `hmm_jax export` and `hmm_jax.load`."""

from collections.abc import Mapping
import os
from typing import Any

import numpy as np

from hmm_jax.experiment import exported, locate
from hmm_jax.experiment.evaluate import STACKED
from hmm_jax.experiment.predictor import Predictor
from hmm_jax.experiment.saved import FOR_ALL, Run
from hmm_jax.report import words
from hmm_jax.tasks.metrics import lower_is_better
from hmm_jax.types import InputError

BEST = 'best'  # The client whose own model is best on its own validation examples.


def load(path: str, *, seed: int | None = None, client: int | str | None = None,
         view: str = '') -> Predictor:
  """Loads a trained model that predicts on raw inputs, without the data set.

  The network of an exported folder is found by the name of its record; a record of one's own,
  FILE.py:RECORD, is Python code, and run as such.

  Args:
    path: an exported folder, or the folder of a run, RUN or RUN@SEED.
    seed: a training seed of a run; None for the first.
    client: whose own model, by id or the name of its owner, or `best`, by validation; None for
      the model for all.
    view: which models of a run, if it has several kinds; '' for the usual one.

  Raises:
    InputError: there is no such model, or the file of its network is gone.
  """
  run, named, initial = locate.run_of(path)
  if initial:
    raise InputError(f'got {path}; expected a trained model, and not an initial one')
  if run:
    seed = run.read_seed(named if seed is None else seed)
    client = best_client(run, seed) if client == BEST else client
    return pick(run, run.models(seed), seed=seed, client=_number(client, run), view=view)
  if seed is not None or view:
    raise InputError(f'got {path} with seed={seed}, view={view!r}; expected the folder of a run, '
                     'as an exported model is of one seed')
  return exported.load(_folder(os.path.expanduser(path), _number(client)))


def export(path: str, out: str, *, seed: int | None = None, client: int | str | None = None,
           clients: bool = False, view: str = '') -> dict[str, dict]:
  """Writes models of a run with all that is needed to use them, and nothing of the data.

  Each client's model has a folder of its own, OUT/client-ID: it is whole by itself, to be sent to
  that client, merged or loaded. (Our choice: a mixture's models are then in each of them.)

  Args:
    path: folder of the run, RUN or RUN@SEED; it is only read.
    out: folder to write.
    seed: as of `load`.
    client: as of `load`.
    view: as of `load`.
    clients: every client's own model, instead of one.

  Returns:
    {folder: content of its model.json}.

  Raises:
    InputError: there is no such model, or the folder has one already; nothing is written.
    SaveError: the file system refuses.
  """
  run, named, initial = locate.run_of(path)
  if run is None or initial:
    raise InputError(f'got {path}; expected the folder of a run')
  if clients and client is not None:
    raise InputError(f'got --clients with --client={client}; expected one of the two')
  out = os.path.abspath(os.path.expanduser(out)) if out and '\0' not in out else out
  exported.check_free(out)
  seed = run.read_seed(named if seed is None else seed)
  client = best_client(run, seed) if client == BEST else client
  views = run.models(seed)
  owners = {os.path.join(out, f'client-{i}'): i for i in run.client_ids} if clients else {
      out: _number(client, run)}
  for folder in owners:
    exported.check_free(folder)
  written = {}
  for folder, owner in owners.items():
    model = pick(run, views, seed=seed, client=owner, view=view)
    exported.write(folder, model.variables, model.about)
    written[folder] = dict(model.about)
  return written


def pick(run: Run, views: Mapping[str, Any], *, seed: int, client: int | None,
         view: str) -> Predictor:
  """Returns one of the models of a seed, with where it comes from.

  Raises:
    InputError: there is no such model.
  """
  view = view or usual_view(run, views, client)
  place = None if client is None else run.place_of(client)
  if client is None and view in STACKED:
    raise InputError(f'got view={view} without a client; expected --client=ID or --clients, as it '
                     'has a model for each')
  if client is not None and view in views and view not in STACKED:
    raise InputError(f'got client={client} with view={view}, one model for all; expected no client')
  model = run.predictor(views, view, place)
  about = exported.described(
      model.about, mixture=model.mixture, method=run.config.algorithm, round=run.rounds, seed=seed,
      view=view, client=client)
  return Predictor(about, model.variables, model.mixture, model=model.model, forward=model.forward)


def usual_view(run: Run, views: Mapping[str, Any], client: int | None) -> str:
  """Returns the view of the model for all, or of a client's own; InputError if there is none."""
  wanted = FOR_ALL if client is None else STACKED
  found = next((name for name in wanted if name in views), None)
  if found:
    return found
  method, folder = run.config.algorithm, run.folder.path
  if client is None:
    raise InputError(f'got {folder}, whose algorithm={method} has no model for all clients; '
                     f'expected --client=ID, --client={BEST} or --clients')
  raise InputError(f'got client={client} with {folder}, whose algorithm={method} makes one model '
                   'for all clients; expected no client')


def best_client(run: Run, seed: int) -> int:
  """Returns the client whose own model is best on its own validation examples.

  By the main metric of the task, such as accuracy.

  Of equals, the one with the lowest loss, and the lowest id; never by test examples.

  Raises:
    InputError: clients have no validation examples.
  """
  table = run.folder.read_table('clients')
  kind = words.main(table[0] if table else ())
  sign = 1 if lower_is_better(kind) else -1
  rows = [row for row in table if row['seed'] == seed
          and np.isfinite(row.get(f'validation/{kind}', np.nan))]
  if not rows:
    raise InputError(f'got client={BEST} with {run.folder.path}, whose clients have no {kind} '
                     'on validation examples of their own; expected the id of a client')
  last = [row for row in rows if row['round'] == rows[-1]['round']]
  return int(min(last, key=lambda row: (
      sign * row[f'validation/{kind}'], row['validation/loss'], row['client']))['client'])


def _number(client, run=None):
  """Returns the id of a client as a number; of a run, a client may go by its owner's name."""
  if client is None or isinstance(client, int):
    return client
  owners = {row['name']: row['client'] for row in run.folder.read_table('partition')
            if 'name' in row} if run else {}
  if client in owners:
    return owners[client]
  if not str(client).isdecimal():
    raise InputError(f'got client={client}; expected the id of a client; of a run '
                       f'also the name of its owner, or {BEST}')
  return int(client)


def _folder(path, client):
  """Returns the folder of a client's model in an exported folder."""
  own = sorted(name for name in (os.listdir(path) if os.path.isdir(path) else ())
               if name.startswith('client-'))
  if client is None:
    if own and not os.path.exists(os.path.join(path, exported.JSON)):
      raise InputError(f'got {path}, with the models of {len(own)} clients; expected --client=ID, '
                       f'or {os.path.join(path, own[0])}')
    return path
  if f'client-{client}' in own:
    return os.path.join(path, f'client-{client}')
  alone = not own and os.path.isdir(path)
  if alone and exported.read(path)['client'] == client:
    return path
  raise InputError(f'got client={client} with {path}; expected '
                   + (f'one of {", ".join(own)}' if own else 'no client'))
