"""The plan of a run: what it will do and cost, in words, before anything is written."""

import math

import jax
from ml_collections import ConfigDict
import numpy as np

from hmm_jax.experiment import comparisons, cost, federation, launch
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.archive import Archive
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.types import Experiment

_LEARNED = 'depends on what is learned'


def plan(config: ConfigDict, workdir: Workdir, *, measure: bool = False) -> list[tuple[str, str]]:
  """Returns what a run will do as (what, figures) pairs.

  Args:
    config: of the run.
    workdir: its folder, which is only read.
    measure: also train two rounds, for the time that all will take.

  Raises:
    InputError: as the run would.
  """
  made = launch.prepare(config, workdir)
  if made is None:
    done = launch.read_summary(workdir) or {}
    return [('the folder', f'has the finished run of {done["rounds"]} rounds, which is only read')]
  experiment, federated, data = made
  saved = Archive(workdir, ('clients', *experiment.algorithm.tables), experiment.keep,
                  federation.fingerprint(config, federated)).newest(
                      previous=config.resume == 'previous', seeds=experiment.seeds,
                      clients=len(federated.clients.id))
  done = saved.round if saved else 0
  clients = len(federated.clients.id)
  return [
      ('the folder', f'goes on after round {done}' if done else 'begins a new run'),
      ('rounds', f'{config.rounds - done:,} to go of {config.rounds:,}, by {len(experiment.seeds)} '
       f'seeds {experiment.seeds[0]} to {experiment.seeds[-1]}'),
      ('evaluations', _evaluations(experiment, done)),
      ('clients in a round', f'{min(federation.cohort(config) or clients, clients):,}'),
      *federation.described(config, federated, data),
      *experiment.algorithm.facts,
      ('parameters of a model', f'{cost.parameters(experiment):,}'),
      *_traffic(experiment),
      ('memory', _memory(experiment)),
      *(_time(experiment, done) if measure else ()),
  ]


def runs(config: ConfigDict, workdir: Workdir) -> list[tuple[ConfigDict, Workdir]]:
  """Returns a run and those that it is compared with, each with its folder.

  Raises:
    InputError: a config is impossible.
  """
  configs.check(config)
  others = comparisons.comparisons(config)
  return [(config, workdir), *((changed, Workdir(workdir.file('references', name)))
                               for name, changed in others.items())]


def changes(config: ConfigDict) -> list[tuple[str, str, str]]:
  """Returns the settings that differ from the defaults: (key, value, default)."""
  values = configs.flat(config)
  defaults = configs.flat(configs.get_config())
  known = configs.settings(config)
  return [(key, f'{value}', f'{defaults.get(key, known[key].default)}')
          for key, value in values.items()
          if value != defaults.get(key, known[key].default)]


def size(count: float) -> str:
  """Writes bytes with a unit: 20.4 kB."""
  if count < 1000:
    return f'{count:.0f} bytes'
  power = min(int(math.log10(count)) // 3, 4)
  return f'{count / 1000**power:.3g} {("kB", "MB", "GB", "TB")[power - 1]}'


def duration(seconds: float) -> str:
  """Writes seconds with a unit: 1.5 minutes."""
  if seconds < 100:
    return f'{seconds:.2g} s'
  if seconds < 6000:
    return f'{seconds / 60:.3g} minutes'
  return f'{seconds / 3600:.3g} hours'


def _count_evaluations(experiment: Experiment, done: int) -> int:
  """Returns the number of evaluations after some rounds; that of a final merge is one more."""
  every = experiment.eval_every
  return -(-experiment.rounds // every) - done // every + bool(experiment.algorithm.finish)


def _evaluations(experiment, done):
  said = f'{_count_evaluations(experiment, done):,}, one in {experiment.eval_every} rounds'
  if experiment.algorithm.finish:
    said += ' and one after the final merge'
  if experiment.patience:
    said += f'; ends early after {experiment.patience} without a better round'
  return said


def _traffic(experiment: Experiment) -> list[tuple[str, str]]:
  """Returns the bytes and local steps of one seed."""
  traffic = experiment.algorithm.traffic
  rows = [('a message', f'{size(traffic.up)} up, {size(traffic.down)} down')]
  found = cost.sent(experiment)
  for way, messages, nbytes in (('up', found.up, traffic.up), ('down', found.down, traffic.down)):
    rows.append((f'sent {way}', _LEARNED if messages is None else
                 f'{_spread(messages[:-1], nbytes)} a round, {size(nbytes * messages.sum())} in '
                 'all, for one seed'))
  rows.append(('local steps', _LEARNED if found.steps is None else
               f'{found.steps.mean():,.4g} a round, {found.steps.sum():,.0f} in all, for one seed'))
  return rows


def _spread(messages: np.ndarray, nbytes: int) -> str:
  least, most = messages.min(), messages.max()
  if least == most:
    return size(nbytes * least)
  return f'{size(nbytes * least)} to {size(nbytes * most)}'


def _memory(experiment):
  held = cost.memory(experiment)
  parts = ', '.join(f'{what} {size(count)}' for what, count in held.items())
  return f'at least {size(sum(held.values()))}: {parts}; and what training takes'


def _time(experiment: Experiment, done: int) -> list[tuple[str, str]]:
  measured = cost.sample(experiment)
  training = (experiment.rounds - done) * measured.a_round
  evaluating = (_count_evaluations(experiment, done) * len(experiment.seeds)
                * measured.an_evaluation)
  return [
      ('peak memory, measured', f'{size(measured.memory)} in two rounds'),
      ('time, by two rounds', f'{duration(measured.compiling + training + evaluating)}: compiling '
       f'{duration(measured.compiling)}, training {duration(training)}, evaluating '
       f'{duration(evaluating)}, on {len(jax.devices())} x {jax.devices()[0].device_kind}')]
