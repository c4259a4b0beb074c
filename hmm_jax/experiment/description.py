"""A run in words: its title, its method, what differs from the defaults, how to repeat it."""

from collections.abc import Mapping
import os
import shlex
from typing import Any, NamedTuple

from hmm_jax.data.partition import PARTITIONERS
from hmm_jax.data.sources import SOURCES
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.workdir import Workdir
from hmm_jax.registry import KINDS, Setting, find, literal
from hmm_jax.report import words
from hmm_jax.types import InputError


class Changed(NamedTuple):
  """A setting with another value than its default."""

  key: str
  value: Any
  default: Any
  meaning: str


class Description(NamedTuple):
  """What a config says.

  facts: (what, words) pairs: method, paper, data, partition ...
  """

  name: str
  title: str
  facts: list[tuple[str, str]]
  changed: list[Changed]
  command: str


def describe(workdir: Workdir) -> Description:
  """Describes the run in a folder.

  A record of somebody's own whose file is gone is described by its reference.

  Raises:
    InputError: there is no run in it, or its config is damaged.
  """
  saved = workdir.read_json('config.json')
  if saved is None:
    raise InputError(f'got {workdir.path}; expected the folder of a run')
  config = configs.renamed(configs.flat(saved))
  own = configs.references(config)
  try:
    complete = configs.complete(saved)
    config, settings = configs.flat(complete), configs.settings(complete)
  except InputError:
    if not own:
      raise
    config = configs.flat(configs.get_config()) | config  # Whose record is no longer there.
    settings = configs.settings(configs.get_config())
  changed = [Changed(key, value, known.default if known else None, _meaning(key, known))
             for key, value in config.items() if key not in configs.OF_ONE_CALL
             for known in [settings.get(key)] if not _is_default(value, known)]
  return Description(
      named(config), title(config), _facts(config), changed, command(changed, workdir.path))


def _meaning(key: str, known: Setting | None) -> str:
  """Says what a setting is; not which records it can name, whose list is long."""
  meaning = known.meaning if known else ''
  return meaning.partition(':')[0] if key in configs.REFERENCES else meaning


def named(config: Mapping[str, Any]) -> str:
  """Returns the name of a run, by its flat config."""
  return str(config['name'] or config['algorithm'].rpartition(':')[2])


def title(config: Mapping[str, Any]) -> str:
  """Returns the title of a run's figures: method, data, partition."""
  method = config['algorithm'].rpartition(':')[2]
  name = config['name'] or method
  own = '' if name == method else f' ({method})'
  return f'{name}{own} · {dealt(config)}'


def dealt(config: Mapping[str, Any]) -> str:
  """Returns the data of a run and their partition."""
  return f'{dataset(config["dataset"])} · {partition(config)}'


def dataset(name: str) -> str:
  """Returns the name of a data set, without its folder."""
  prefix, found, path = name.partition(':')
  return os.path.basename(path) if found and prefix in SOURCES and os.path.isabs(path) else name


def partition(config: Mapping[str, Any]) -> str:
  """Says how examples are dealt: 'dirichlet (alpha 0.1), 20 clients'."""
  kind = config['partition.kind']
  known = PARTITIONERS.get(kind)
  # The first setting of a partitioner is the one that it is known by.
  told = [(key, config[f'partition.{key}'])
          for place, (key, setting) in enumerate(known.settings.items() if known else ())
          if f'partition.{key}' in config
          and (place == 0 or config[f'partition.{key}'] != setting.default)]
  settings = ', '.join(f'{key.replace("_", " ")} {value}' for key, value in told)
  clients = config['clients']
  corrupt = corrupted(config)
  return ', '.join(filter(None, [
      kind.rpartition(':')[2] + (f' ({settings})' if settings else ''),
      f'{clients} clients' if clients else '', f'{corrupt:.0%} corrupted' if corrupt else '']))


def corrupted(config: Mapping[str, Any]) -> float:
  """Returns the share of clients whose data are corrupted."""
  return config['corrupt.clients'] if config['corrupt.kind'] != 'none' else 0


def command(changed: list[Changed], folder: str) -> str:
  """Returns the command that repeats a run in a new folder, beside the old one."""
  flags = [f'--config.{one.key}={as_text(one.value)}' for one in changed]
  again = f'{os.path.normpath(folder)}-again'
  return shlex.join(['hmm_jax', 'run', *flags, f'--workdir={again}'])


def as_text(value: Any) -> str:
  """Writes a value as the command line reads it."""
  if isinstance(value, list):
    value = _tuple(value)
  if not isinstance(value, str):
    return repr(value)
  return repr(value) if isinstance(literal(value), str) and literal(value) != value else value


def _tuple(value):
  return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _is_default(value, known) -> bool:
  return known is not None and (_tuple(value) == _tuple(known.default))


def _facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns (what, words) pairs, out of the records."""
  method, network, source, dealt = (_record(key, config[key]) for key in (
      'algorithm', 'model', 'dataset', 'partition.kind'))
  seeds = range(config['seed'], config['seed'] + config['seeds'])
  everybody = method is not None and 'all clients' in method.needs
  corrupt = corrupted(config)
  some = 'all' if everybody else config['participation'] or 'all'
  facts = [
      ('method', _told(config['algorithm'], method)),
      ('kind', KINDS[method.kind] if method else ''),
      ('paper', method.paper if method else ''),
      ('data', _told(dataset(config['dataset']), source)),
      ('partition', _told(partition(config), dealt)),
      ('corruption', f'{corrupt:.0%} of the clients: {config["corrupt.kind"]}, at a rate of '
                     f'{config["corrupt.rate"]}' if corrupt else ''),
      ('server', f'{words.counted(own, "example")} of its own' if (own := config['server.size']) > 0
                 else ''),
      ('network', _told(config['model'], network)),
      ('rounds', f'{config["rounds"]}, with {some} clients each'),
      ('training seeds', ', '.join(map(str, seeds)) + (
          '; all on one partition, so that a spread leaves that of partitions out'
          if len(seeds) > 1 else '')),
  ]
  return [(what, said) for what, said in facts if said]


def _record(key: str, name: str) -> Any:
  """Returns the record that a config names; None if that is gone, or a data set by its name."""
  known = configs.REFERENCES[key][0]
  try:
    return known.get(name.partition(':')[0]) or find(key, name, *configs.REFERENCES[key])
  except InputError:
    return None


def _told(name: str, record: Any) -> str:
  return f'{name}: {record.summary}' if record and record.summary else name
