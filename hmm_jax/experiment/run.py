"""Executes a run: training, evaluation, checkpoints, resuming and early stopping."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
import psutil

from hmm_jax import __version__
from hmm_jax.experiment import stopping
from hmm_jax.experiment.archive import Archive, Saved
from hmm_jax.experiment.tracking import tracked
from hmm_jax.experiment.trainer import Chunk, Diverged, Trainer
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.models import files
from hmm_jax.report import words
from hmm_jax.report.screen import Screen
from hmm_jax.tasks.metrics import lower_is_better
from hmm_jax.types import Experiment, InputError, PyTree


class Progress(NamedTuple):
  """Content of a checkpoint: current states of all seeds, and those of the best evaluation."""

  states: PyTree
  best: PyTree  # () unless keep_best


def run(experiment: Experiment, settings: dict, workdir: Workdir, screen: Screen, *,
        data: Mapping[str, str] | None = None, previous: bool = False,
        show: Callable[[], None] = lambda: None) -> dict:
  """Trains, evaluates and saves until `experiment.rounds`; resumes from the newest checkpoint.

  Each evaluation writes metrics.csv and clients.csv before the checkpoint, so that a kill
  in between loses nothing: on resuming, rows after the checkpoint are dropped and recomputed.
  If the algorithm has a `finish`, the last round has two rows per seed: before and after it.
  A signal such as SIGTERM ends the run after the round, with a checkpoint to go on from.

  Args:
    experiment: made by `build`.
    settings: the config that it was built from, saved in config.json.
    workdir: folder of the output files; an unfinished run in it is resumed.
    screen: prints the progress.
    data: digests of the data by name; an unfinished run must have been trained on the same.
    previous: if the newest checkpoint is damaged, resume from the last whole one.
    show: called after each evaluation but the last, when its results are saved.

  Returns:
    The summary, also written to summary.json.

  Raises:
    InputError: a file in the workdir is damaged, or of other data.
    SaveError: a result can't be saved.
    Diverged: a round gave non-finite values; saved files are kept.
    Stopped: a signal has ended the run.
  """
  start, primary = time.perf_counter(), jax.process_index() == 0
  trainer = Trainer(experiment)
  tables = ('clients', *experiment.algorithm.tables)
  archive = Archive(workdir, tables, experiment.keep, data)
  (states, best), (done, rows, unfinished) = _resume(experiment, trainer, archive, previous)
  if primary:
    workdir.make()
    archive.begin(after=done)
    workdir.write_json('config.json', settings)
    if experiment.about:
      workdir.write_json('model.json', dict(experiment.about))
  if experiment.init and not done:
    _keep_initial(experiment, trainer, workdir, primary)

  for line in experiment.warnings:
    screen.say(f'warning: {line}')
  with (screen.progress(done, experiment.rounds) as report, stopping.on_signals() as request,
        tracked(experiment.track if primary else (), settings, workdir, rows, screen) as track):
    chunks = () if _is_over(rows, experiment) else trainer.rounds(
        states, done, unfinished, stop=lambda: bool(request.number))
    del states  # Their buffers are donated to the program.
    for chunk in _told(chunks, done):
      states, done = chunk.states, chunk.done
      if done % experiment.eval_every and done < experiment.rounds:
        archive.save(done, Progress(states, best), primary, chunk.unfinished())
        break
      fresh, each = _evaluate(
          experiment, trainer, states, done, chunk.metrics, chunk.seconds, rows)
      best = _keep_best(experiment, states, best, rows, fresh)
      new = fresh
      stop = done == experiment.rounds or _patience_ran_out(rows + new, experiment)
      if stop and experiment.algorithm.finish:
        states, fresh, after = _finish(experiment, trainer, states, rows + new)
        best = _keep_best(experiment, states, best, rows + new, fresh)
        new, each = new + fresh, each + after
      rows = rows + new
      if primary:
        workdir.table('metrics').write(rows)
        workdir.table('clients').append(each)
        for table, records in _records(experiment, chunk.metrics, done).items():
          workdir.table(table).append(records)
      archive.save(done, Progress(states, best), primary)
      track(new)
      report(done, _headline(fresh, chunk.metrics, chunk.seconds))
      if stop:
        break
      if primary:
        show()

  if not (done == experiment.rounds or _is_over(rows, experiment)):
    raise stopping.Stopped(f'stopped after round {done} of {experiment.rounds}, which is saved in '
                           f'{workdir.path}; the same command goes on', request.code)
  summary = summarize(experiment, rows) | {
      'wall_seconds': round(time.perf_counter() - start, 3),  # of this process
      'compile_seconds': round(trainer.compile_seconds, 3)}
  if primary:
    workdir.write_json('summary.json', summary)
  return summary


def _told(chunks: Iterable[Chunk], done: int) -> Iterator[Chunk]:
  """Yields the chunks; a divergence says which checkpoint there is."""
  try:
    for chunk in chunks:
      done = chunk.done
      yield chunk
  except Diverged as error:
    kept = f'the checkpoint of round {done} is kept' if done else 'nothing was saved before'
    raise Diverged(f'{error}; {kept}') from error


def _resume(experiment, trainer, archive, previous) -> tuple[Progress, Saved]:
  """Returns what the run goes on from: the newest saved point, or its beginning."""
  saved = archive.newest(previous=previous, seeds=experiment.seeds,
                         clients=len(experiment.federation.clients.id))
  if saved is None:
    states = trainer.initial()
    return Progress(states, _host_copy(states) if experiment.keep_best else ()), Saved(0, [], {})
  if saved.round > experiment.rounds:
    raise InputError(f'got a checkpoint of round {saved.round} with rounds={experiment.rounds}; '
                     'expected a checkpoint of this run')
  like = Progress(trainer.shapes, trainer.shapes if experiment.keep_best else ())
  progress = archive.restore(saved.round, like)
  return Progress(trainer.place(progress.states), progress.best), saved


def _keep_initial(experiment, trainer, workdir, primary):
  """Saves the model that each seed begins from; all processes take part in making it."""
  models = trainer.initial_models(experiment.init)
  for seed, variables in zip(experiment.seeds, models, strict=True):
    if primary:
      files.save(workdir.initial(seed), files.flatten(variables))


def _host_copy(states):
  """Copies states to the host, because the next chunk overwrites their device buffers."""
  return jax.tree.map(np.array, states)


def _finish(experiment, trainer, states, rows):
  """Runs `finish` and evaluates again: a second row of the last round for each seed."""
  states, metrics = trainer.finish(states)
  metrics = {name: values[:, None] for name, values in metrics.items()}
  return states, *_evaluate(
      experiment, trainer, states, rows[-1]['round'], metrics, 0.0, rows)


def _evaluate(experiment, trainer, states, done, metrics, seconds, rows):
  """Returns new rows of metrics.csv, one per seed, and of clients.csv, one per seed and client.

  In metrics.csv, metrics that are not measured now keep their previous values.
  """
  last = {row['seed']: row for row in rows[-len(experiment.seeds):]}
  traffic = experiment.algorithm.traffic
  fresh, each = [], []
  for s, seed in enumerate(experiment.seeds):
    before = last.get(seed, {'round': 0, 'seed': seed, 'seconds': 0.0, 'bytes_up': 0,
                             'bytes_down': 0})
    row = before | {
        'round': done, 'seed': seed, 'seconds': round(before['seconds'] + seconds, 4)}
    for way, size in (('up', traffic.up), ('down', traffic.down)):
      messages = float(metrics[f'messages_{way}'][s].sum(dtype=np.float64))
      row[f'bytes_{way}'] = before[f'bytes_{way}'] + round(messages * size)
    hidden = {'cohort', 'records', 'messages_up', 'messages_down'}
    row |= {name: float(values[s].mean(dtype=np.float64))
            for name, values in metrics.items() if name not in hidden}
    gauges = {name: np.asarray(value) for name, value in trainer.gauges(states, s).items()}
    row |= {name: float(value) for name, value in gauges.items() if not value.ndim}
    scores = experiment.evaluate(trainer.views(states, s))
    fresh.append(row | scores.metrics)
    tables = scores.clients | {name: value for name, value in gauges.items() if value.ndim}
    if experiment.federation.corrupted is not None:
      tables['corrupted'] = np.asarray(experiment.federation.corrupted, np.int32)
    if tables and experiment.client_names:
      tables = {'name': np.array(experiment.client_names)} | tables
    each += _client_rows(done, seed, np.asarray(experiment.federation.clients.id), tables)
  return fresh, each


def _client_rows(done: int, seed: int, ids: np.ndarray, tables: dict) -> list[dict]:
  """Returns one row per client from values [K], or [K, M] in columns NAME/0, NAME/1, ..."""
  columns = {}
  for name, values in tables.items():
    columns |= {name: values} if values.ndim == 1 else {
        f'{name}/{j}': column for j, column in enumerate(values.T)}
  return [{'round': done, 'seed': seed, 'client': int(i)}
          | {name: column[k].item() for name, column in columns.items()}
          for k, i in enumerate(ids)] if columns else []


def _records(experiment: Experiment, metrics: dict, done: int) -> dict[str, list[dict]]:
  """Returns the rows of the algorithm's own tables for the newest rounds, up to `done`."""
  tables = {}
  for table, columns in metrics.get('records', {}).items():
    valid = columns.get('valid', np.ones_like(next(iter(columns.values())), bool))
    values = {name: column for name, column in columns.items() if name != 'valid'}
    first = done - valid.shape[1] + 1
    tables[table] = [
        {'round': first + r, 'seed': experiment.seeds[s]}
        | {name: column[s, r, i].item() for name, column in values.items()}
        for s, r, i in np.argwhere(valid).tolist()]
  return tables


def _selected(rows: list[dict], seed: int, criterion: str) -> list[float]:
  """Returns one seed's values of the selection criterion; higher is better."""
  sign = -1 if lower_is_better(criterion) else 1
  values = [sign * row[criterion] for row in rows if row['seed'] == seed and criterion in row]
  # A finite model may have a loss of NaN, which np.argmax would select as the largest.
  return [-np.inf if np.isnan(value) else value for value in values]


def selected(rows: list[dict], criterion: str) -> dict | None:
  """Returns the row of one seed that is best by the criterion; None if no row has it."""
  values = _selected(rows, rows[0]['seed'], criterion) if rows else []
  return rows[int(np.argmax(values))] if values else None


def _keep_best(experiment, states, best, rows, fresh):
  """Replaces the best states of the seeds whose criterion has improved."""
  if not experiment.keep_best:
    return ()
  criterion = experiment.criterion
  improved = np.array([
      not rows or _selected(fresh, seed, criterion) > [max(_selected(rows, seed, criterion))]
      for seed in experiment.seeds])
  choose = lambda new, old: np.where(
      improved.reshape(-1, *[1] * (new.ndim - 1)), np.asarray(new), old)
  return jax.tree.map(choose, states, best)


def finished(rows: list[dict]) -> bool:
  """Returns whether `finish` was run: then the last round has two rows per seed."""
  last = [row['round'] for row in rows if row['seed'] == rows[-1]['seed']][-2:]
  return len(last) == 2 and last[0] == last[1]


def _is_over(rows, experiment) -> bool:
  return finished(rows) or _patience_ran_out(rows, experiment)


def _patience_ran_out(rows, experiment) -> bool:
  """Returns whether no seed has improved on validation for `patience` evaluations."""
  if not experiment.patience or not rows:
    return False
  waited = []
  for seed in experiment.seeds:
    values = _selected(rows, seed, experiment.criterion)
    waited.append(len(values) - 1 - int(np.argmax(values)) if values else 0)
  return min(waited) >= experiment.patience


def _headline(fresh, metrics, seconds):
  main = words.main(fresh[0])
  names = (*(f'{view}/test/{main}' for view in ('global', 'locals', 'clients')), 'train/loss')
  values = {n: np.mean([row[n] for row in fresh]) for n in names if n in fresh[0]}
  count = metrics['train/loss'].shape[1]
  return f'{count / seconds:.2f} rounds/s  ' + '  '.join(f'{n} {v:.4f}' for n, v in values.items())


def summarize(experiment: Experiment, rows: list[dict]) -> dict:
  """Returns the summary: last and validation-selected metrics over seeds, and costs."""
  return figures(rows, experiment.seeds, experiment.criterion) | {
      'rounds_requested': experiment.rounds,
      'criterion': experiment.criterion,
      'warnings': [*experiment.warnings, *gone_wrong(rows, experiment)],
      'peak_memory_bytes': peak_memory(),
      'device': f'{len(jax.devices())} x {jax.devices()[0].device_kind}',
      'versions': {'hmm_jax': __version__} | {
          name: metadata.version(name) for name in
          ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')},
  }


def gone_wrong(rows: list[dict], experiment: Experiment) -> list[str]:
  """Returns a line for each seed whose training has failed, though all numbers are finite.

  Our choice: the training loss is twice that of guessing, or another loss a hundred times.
  """
  guessing = np.log(experiment.classes) if experiment.classes > 1 else np.inf
  lines = []
  for row in rows[-len(experiment.seeds):]:
    losses = {name: value for name, value in row.items() if name.endswith('/loss')
              and value > guessing * (2 if name == 'train/loss' else 100)}
    if losses:
      name, value = max(losses.items(), key=lambda item: item[1])
      lines.append(f'seed {row["seed"]} has learned nothing: {name} is {value:.3g}, that of '
                   f'guessing is {guessing:.3g}; a smaller local.lr or local.clip may help')
  return lines


def figures(rows: list[dict], seeds: Sequence[int], criterion: str) -> dict:
  """Returns the part of a summary that depends only on the rows of metrics.csv.

  Args:
    rows: rows of all seeds.
    seeds: the order of the values per seed.
    criterion: the metric that selects a round of each seed.
  """
  by_seed = [[row for row in rows if row['seed'] == seed] for seed in seeds]
  chosen = [row for own in by_seed if (row := selected(own, criterion))]
  return {
      'rounds': rows[-1]['round'],
      'seeds': list(seeds),
      'last': over_seeds([r[-1] for r in by_seed]),
      'before_finish': over_seeds([r[-2] for r in by_seed]) if finished(rows) else None,
      'selected_on_validation': over_seeds(chosen) if chosen else None,
      'train_seconds': rows[-1]['seconds'],
  }


def over_seeds(rows: list[dict]) -> dict:
  """Returns {metric: {mean, std, seeds: values}}; std is the sample std (0 for one seed)."""
  table = {}
  for name in set.intersection(*map(set, rows)) - {'seed'}:
    values = [float(row[name]) for row in rows]
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    table[name] = {'mean': float(np.mean(values)), 'std': std, 'seeds': values}
  return dict(sorted(table.items()))


def peak_memory() -> int:
  """Returns the peak memory in bytes: of the device, or of the process on a CPU.

  If the system does not record the peak of a process, it is the current usage.
  """
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    return stats['peak_bytes_in_use']
  used = psutil.Process().memory_info()
  if hasattr(used, 'peak_wset'):  # Windows
    return used.peak_wset
  try:
    import resource
  except ImportError:
    return used.rss
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else 1024 * peak  # Bytes on macOS, else KiB.
