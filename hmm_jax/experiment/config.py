"""The settings of a run, put together from the records of what it can name.

Change one with `--config.key=value`; write a file with a `get_config` that returns such a config
and pass `--config=FILE` for a study of your own. There are no hidden options.
"""

from collections.abc import Collection, Mapping
import os
import re
import runpy
import sys
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from hmm_jax import registry
from hmm_jax.algorithms import METHODS
from hmm_jax.algorithms.engines import fine_tuning, one_shot
from hmm_jax.algorithms.parts import LOCAL, check_local
from hmm_jax.data import corrupt, federate, memory, server
from hmm_jax.data.partition import PARTITIONERS
from hmm_jax.data.sources import SOURCES
from hmm_jax.merging.data_free import invert
from hmm_jax.models import NETWORKS
from hmm_jax.models import OWN as OWN_NETWORKS
from hmm_jax.registry import (
    Method,
    Network,
    Partitioner,
    Setting,
    Source,
    absolute,
    find,
    is_reference,
    literal,
    suggestion,
)
from hmm_jax.report import trackers
from hmm_jax.report.trackers import TRACKERS
from hmm_jax.server import objectives, training
from hmm_jax.tasks import TASKS, metrics
from hmm_jax.types import InputError

# What is trained, for how long, where: the keys without a section.
RUN = {
    'name': Setting('', "name of the run in tables, and of its folder; '': the method's"),
    'algorithm': Setting('fedavg', f'the method: {", ".join(METHODS)}'),
    'dataset': Setting('digits', 'a data source: ' + ', '.join(
        source.form for source in SOURCES.values()) + ', or a prepared TFDS set by its name'),
    'data_dir': Setting('', "where the data lie: of TFDS, '' is ~/tensorflow_datasets; of "
                        "crisismmd, '' is ~/tensorflow_datasets/crisismmd"),
    'subset': Setting(1.0, 'share of the examples to use, drawn by partition.seed'),
    'task': Setting('classification', 'what is learned: ' + '; '.join(
        f'{kind.name}: {kind.summary}' for kind in TASKS.values()), choices=TASKS),
    'loss': Setting('', "the clients' loss: package.module:FUNCTION or path/file.py:FUNCTION, "
                    '(outputs, y) -> [B], or, of a regression, ' + ', '.join(
                        TASKS['regression'].losses) + "; '': the task's own"),
    'metrics': Setting('', 'further metrics, any of ' + ','.join(
        dict.fromkeys(name for of in metrics.NAMED.values() for name in of))
        + ", or one's own, path/file.py:FUNCTION, (y, predictions) -> number"),
    'model': Setting('mlp', f'the network: {", ".join(NETWORKS)}, or a flax module of your own'),
    'init': Setting('', "the initial model of all seeds: an exported folder, a file (safetensors, "
                    "npz) or a run, RUN@SEED; '': drawn at random"),
    'init_spread': Setting(
        0.1, 'distance of the other global models from that in init, for methods that start from '
        'several: as a share of the distance of two random ones', at_least=0),
    'normalize': Setting('standard', 'inputs of the network: standardized, or as they are',
                         choices=('standard', 'none')),
    'augment': Setting('none', 'training images: random crops, mirrored or not',
                       choices=('none', 'crop_flip')),
    'crop_padding': Setting(4, 'pixels of zeros around an image before it is cropped',
                            at_least=0, at_most=1000),
    'compute_dtype': Setting('float32', 'what networks compute in; parameters stay float32',
                             choices=('float32', 'bfloat16')),
    'clients': Setting(
        20, 'number of clients; 0: as many as the data has natural ones', at_least=0),
    'participation': Setting(10, 'clients in a round; 0: all', at_least=0),
    'rounds': Setting(100, 'number of rounds', at_least=1),
    'eval_every': Setting(10, 'rounds between evaluations and checkpoints', at_least=1),
    'eval_batch': Setting(512, 'examples evaluated at a time', at_least=1, at_most=10**6),
    'seed': Setting(0, 'the first of the training seeds', at_least=0),
    'seeds': Setting(3, 'number of training seeds, from `seed` on', at_least=1, at_most=1000),
    'seed_map': Setting('in_turn', 'how seeds are trained: one after another, or vectorized',
                        choices=('in_turn', 'together')),
    'selection': Setting('auto', 'the validation metric by which the best round is selected; auto: '
                         'accuracy, f1_micro, rmse or perplexity, by the task',
                         choices=('auto', 'loss', *metrics.BUILT_IN)),
    'keep_best': Setting(False, 'also keep the states of the selected round'),
    'keep': Setting(2, 'number of checkpoints that are kept', at_least=1),
    'resume': Setting('newest', 'from which checkpoint a run goes on: the newest, or, if that is '
                      'damaged, a previous one', choices=('newest', 'previous')),
    'plots': Setting(True, 'draw plots and report.html, which takes seconds; `hmm_jax report` '
                     'draws them later'),
    'track': Setting('', f'trackers of the metrics: any of {",".join(TRACKERS)}; one that is added '
                     'later gets the earlier rows, too'),
    'references': Setting('', 'also run, for comparison: any of iid,linear,local,fedavg'),
    'variants': Setting((), 'also run, for comparison, each with other settings: '
                        "'NAME key=value key=value'"),
    'mapper': Setting(
        'auto', 'how clients are mapped; results do not depend on it, but for rounding',
        choices=('auto', 'map', 'vmap', 'sharded')),
    'chunk': Setting(0, 'clients vectorized at a time by vmap; 0: all', at_least=0),
}
STOP = {'patience': Setting(0, 'evaluations without a better validation metric after which a run '
                            'ends; 0: it never ends early', at_least=0)}
KIND = {'kind': Setting('dirichlet', f'the partitioner: {", ".join(PARTITIONERS)}')}
# Sections that several records share.
SHARED = {
    'stop': STOP,
    'partition': KIND | {key: setting for record in PARTITIONERS.values()
                         for key, setting in record.settings.items()} | federate.SETTINGS,
    'server': server.SETTINGS | objectives.SETTINGS | training.SETTINGS,
    'corrupt': corrupt.SETTINGS,
    'local': LOCAL,
    'fine_tune': fine_tuning.SETTINGS,
    'one_shot': one_shot.SETTINGS,
    'inversion': invert.SETTINGS,
}
OWN = {record.name: dict(record.settings)
       for table in (METHODS, NETWORKS, SOURCES, TASKS) for record in table.values()
       if record.settings}

# Keys whose value may refer to a record of one's own: what the others are, and what may stand for
# one.
REFERENCES = {
    'algorithm': (METHODS, Method),
    'model': (NETWORKS, Network, OWN_NETWORKS),
    'dataset': (SOURCES, Source, memory.FUNCTION),
    'server.source': (SOURCES, Source, memory.FUNCTION),
    'partition.kind': (PARTITIONERS, Partitioner),
}
# Keys whose value may refer to a function of one's own.
FUNCTIONS = ('local.optimizer', 'loss', 'metrics')
# Keys whose texts may be a number.
TEXTS_OR_NUMBERS = ('images.size', 'hf.size')
# Keys that say what is shown beside a run or kept of it, and change no number.
COSMETIC = {'name', 'references', 'variants', 'keep', 'plots', 'track'}
# Keys that are of one call, and not of the run.
OF_ONE_CALL = {'resume'}
# Keys whose value is a path.
PATHS = ('data_dir', 'crisismmd.vectors', 'crisismmd.cache', 'init')
# Keys of data sets, and the sources whose path may be a folder.
SETS = ('dataset', 'server.source')
FOLDERS = ('images', 'leaf', 'hf')
# Keys and values of earlier releases, still read.
OLD_KEYS = {
    'normalise': 'normalize', 'feddle.normalise': 'feddle.normalize',
    'fedmerge.normalise': 'fedmerge.normalize', 'dmm.whose': 'dmm.statistics_of',
    'dmm.words': 'dmm.teacher_weights', 'dmm.after': 'dmm.student_statistics',
    'dmm.distil_batch': 'dmm.distillation_batch', 'inversion.length': 'inversion.norm',
    'feddle.marks': 'feddle.checkpoints', 'tensorboard': 'track',
}
OLD_VALUES = {
    ('algorithm', 'centralised'): 'centralized',
    ('fedmerge.weight_step', 'max_normalised'): 'max_normalized',
    ('dmm.student_statistics', 're_estimated'): 'recalibrated',
    ('dmm.teachers', 'everybody'): 'all',
    ('track', 'False'): '', ('track', 'false'): '',  # of `tensorboard`, a bool
    ('track', 'True'): 'tensorboard', ('track', 'true'): 'tensorboard',
}
# What others call a setting.
ALIASES = {
    'lr': 'local.lr', 'learning_rate': 'local.lr', 'client_lr': 'local.lr', 'eta': 'local.lr',
    'batch_size': 'local.batch', 'bs': 'local.batch', 'minibatch': 'local.batch',
    'local_epochs': 'local.epochs', 'num_epochs': 'local.epochs', 'local_steps': 'local.steps',
    'wd': 'local.weight_decay', 'grad_clip': 'local.clip', 'opt': 'local.optimizer',
    'num_clients': 'clients', 'n_clients': 'clients', 'total_clients': 'clients',
    'clients_per_round': 'participation', 'cohort': 'participation', 'frac': 'participation',
    'fraction': 'participation', 'client_fraction': 'participation',
    'num_rounds': 'rounds', 'n_rounds': 'rounds', 'comm_round': 'rounds',
    'communication_rounds': 'rounds', 'global_rounds': 'rounds', 'eval_freq': 'eval_every',
    'method': 'algorithm', 'strategy': 'algorithm', 'aggregator': 'algorithm', 'alg': 'algorithm',
    'data': 'dataset', 'net': 'model', 'network': 'model', 'arch': 'model',
    'architecture': 'model', 'random_seed': 'seed', 'num_seeds': 'seeds',
    'dirichlet_alpha': 'partition.alpha', 'alpha': 'partition.alpha', 'dir': 'partition.alpha',
    'split': 'partition.kind', 'early_stopping': 'stop.patience', 'dtype': 'compute_dtype',
    'precision': 'compute_dtype', 'mu': 'fedprox.mu',
}


def get_config(references: Mapping[str, str] | None = None) -> ConfigDict:
  """Returns the defaults: FedAvg on scikit-learn's digits, in 20 skewed clients.

  Args:
    references: {key of REFERENCES: record}; those of one's own have their sections, too.

  Raises:
    InputError: a reference is to nothing, or to a record whose name is taken.
  """
  config = ConfigDict({key: setting.default for key, setting in RUN.items()})
  for section, values in (SHARED | OWN | plugin_sections(references or {})).items():
    config[section] = ConfigDict({key: setting.default for key, setting in values.items()})
  for key, name in (references or {}).items():
    config.update_from_flattened_dict({key: absolute(name)})
  return config.lock()


def configure(changes: Mapping[str, Any] | None = None, **more: Any) -> ConfigDict:
  """Returns the defaults with other values, checked.

  Args:
    changes: {'local.lr': 0.1, ...}.
    **more: keys without a section.

  Raises:
    InputError: an unknown key, or a value that is impossible.
  """
  changed = complete({**(changes or {}), **more})
  check(changed)
  return changed


def complete(config: Mapping | ConfigDict) -> ConfigDict:
  """Returns the defaults with a config's values, which may name only some of the keys.

  Raises:
    InputError: a key that does not exist, or a value of another type.
  """
  values = renamed(flat(config))
  return updated(get_config(references(values)), values, 'the config')


def updated(config: ConfigDict, changes: Mapping[str, Any], source: str) -> ConfigDict:
  """Returns a copy with other values: {'local.lr': 0.1, ...}, out of what `source` names.

  Raises:
    InputError: a key that does not exist, or a value of another type.
  """
  changes = renamed(changes)
  full = get_config(references(flat(config) | changes))
  keys = tuple(flat(full))
  for key, value in ({k: v for k, v in flat(config).items() if k in keys} | changes).items():
    if key not in keys:
      raise InputError(f'got {key} in {source}; expected a key of a setting' + _meant(key, keys))
    value = placed(key, value)
    if key in TEXTS_OR_NUMBERS and type(value) is int:
      value = str(value)
    try:
      if value is None:  # A ConfigDict takes it for any type.
        raise TypeError(key)
      full.update_from_flattened_dict({key: value})
    except TypeError as error:
      raise _mistyped(key, repr(value), flat(full)[key]) from error
  return full


def placed(key: str, value: Any) -> Any:
  """Returns a value that names its file from anywhere; other values stay."""
  if not isinstance(value, str) or not value:
    return value
  if key in PATHS:
    return os.path.abspath(os.path.expanduser(value))
  if key in REFERENCES:
    value = absolute(value)
  if key in FUNCTIONS:  # Of metrics there may be several.
    value = ','.join(absolute(name.strip()) for name in value.split(','))
  prefix, found, path = value.partition(':')
  path = os.path.expanduser(path)
  there = os.path.exists if key in SETS and prefix in FOLDERS else os.path.isfile
  if not found or '\0' in path or not there(path):
    return value
  return f'{prefix}:{os.path.abspath(path)}'


def _meant(key: str, keys: Collection[str]) -> str:
  """Returns '; did you mean X?' for an unknown key: by what others call it, or by its letters."""
  last = key.rpartition('.')[2].lower()
  named = [other for other in keys if other.rpartition('.')[2] == last]
  meant = ALIASES.get(last) or next(
      (other for other in named if other.startswith('local.')), next(iter(named), ''))
  return f'; did you mean {meant}?' if meant else suggestion(key, keys)


def _mistyped(key: str, value: str, default: Any) -> InputError:
  known = RUN.get(key) or (SHARED | OWN).get(key.partition('.')[0], {}).get(key.partition('.')[2])
  meaning = f': {known.meaning}' if known else ''
  return InputError(f'got {key}={value}; expected a value like {default!r}{meaning}')


def from_texts(config: ConfigDict, texts: Mapping[str, str], source: str) -> ConfigDict:
  """Returns a copy with other values, given as texts, out of what `source` names.

  Raises:
    InputError: a key that does not exist, or a text that is no value of its type.
  """
  texts = renamed(texts)
  defaults = flat(get_config(references(flat(config) | texts)))
  return updated(config, {key: typed(key, text, defaults[key]) if key in defaults else text
                          for key, text in texts.items()}, source)


def typed(key: str, text: str, default: Any) -> Any:
  """Reads a text as a value of the default's type.

  Raises:
    InputError: it is none.
  """
  value = literal({'true': 'True', 'false': 'False'}.get(text, text))
  if isinstance(default, str):
    return value if isinstance(value, str) else text
  if isinstance(default, float) and type(value) is int:
    return float(value)
  if isinstance(default, tuple) and isinstance(value, list):
    return tuple(value)
  if type(value) is not type(default):
    raise _mistyped(key, text, default)
  return value


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns values with the keys and names of today for those of earlier releases."""
  values = {OLD_KEYS.get(key, key): value for key, value in values.items()}
  texts = {key: str(value) for key, value in values.items() if isinstance(value, str | bool)}
  return {key: OLD_VALUES.get((key, texts.get(key, '')), value) for key, value in values.items()}


def references(values: Mapping[str, Any]) -> dict[str, str]:
  """Picks those values that refer to records of one's own."""
  return {key: values[key] for key, (known, *_) in REFERENCES.items()
          if isinstance(values.get(key), str) and values[key].partition(':')[0] not in known
          and is_reference(values[key]) and not values[key].startswith('domain:')}


def plugin_sections(given: Mapping[str, str]) -> dict[str, dict[str, Setting]]:
  """Returns the sections of records of one's own.

  Raises:
    InputError: a reference is to nothing, or to a record whose name is taken.
  """
  sections = {}
  for key, name in given.items():
    record = find(key, name, *REFERENCES[key])
    if record.name in RUN | SHARED | OWN or record.name in REFERENCES[key][0]:
      raise InputError(f'got {key}={name}, a record of the name {record.name}; expected a name '
                       'that no setting or built-in record has')
    sections[record.name] = dict(record.settings)
  return sections


def settings(config: ConfigDict) -> dict[str, Setting]:
  """Returns every setting of a config: {'local.lr': Setting, ...}."""
  sections = SHARED | OWN | plugin_sections(references(flat(config)))
  return RUN | {f'{section}.{key}': setting for section, values in sections.items()
                for key, setting in values.items()}


def section(config: ConfigDict, record: Method | Network | Source) -> ConfigDict:
  """Returns a record's section of a config; empty if it has no settings."""
  return config[record.name] if record.settings else ConfigDict()


def selecting(metric: str, task: str) -> str:
  """Returns the metric that a value of `selection` names: auto is the task's main one."""
  return TASKS[task].metrics[0] if metric == 'auto' else metric


def method(config: ConfigDict) -> Method:
  """Returns the method of a config; InputError if there is none."""
  return find('algorithm', config.algorithm, METHODS, Method)


def network(name: str) -> Network:
  """Returns the network of a name, or of a reference; InputError if there is none."""
  return find('model', name, NETWORKS, Network, OWN_NETWORKS)


def check(config: ConfigDict):
  """Checks every value, and what goes together.

  Raises:
    InputError: a name is unknown, a number out of range, or two settings don't go together.
  """
  values, known = flat(config), settings(config)
  chosen = method(config)
  network(config.model)
  find('partition.kind', config.partition.kind, PARTITIONERS, Partitioner)
  for key, value in values.items():
    known[key].check(key, value)
  if not registry.is_file_name(config.name):
    raise InputError(f'got name={config.name!r}; expected a name that a folder can have')
  trackers.named(config.track)
  if config.seed + config.seeds > 2**31:
    raise InputError(f'got seed={config.seed}; expected seeds below 2**31')
  check_local(config, chosen.name, chosen.needs)
  if 'classes' in chosen.needs and config.task != 'classification':
    raise InputError(f'got task={config.task} with algorithm={chosen.name}, which needs classes; '
                     'expected task=classification, or another method')
  if chosen.check:
    with registry.section(chosen.name, chosen.settings):
      chosen.check(config)


def read(path: str) -> ConfigDict:
  """Reads a config file with get_config: FILE.py, or FILE.py:ARGUMENTS.

  Raises:
    InputError: there is none, or it does not return a config.
  """
  expanded = os.path.expanduser(path)
  files = [expanded[:found.end()] for found in re.finditer(r'\.py(?=:|\Z)', expanded)]
  file = next((file for file in files if os.path.isfile(file)), None)
  if file is None:
    raise InputError(f'got config={path}; expected a file FILE.py with get_config, or '
                     'FILE.py:ARGUMENTS')
  text, neighbors = expanded[len(file):], os.path.dirname(os.path.abspath(file))
  sys.path.insert(0, neighbors)  # Which it may import.
  try:
    module = runpy.run_path(file)
    config = module['get_config'](*[text[1:]] if text else [])
  except InputError:
    raise
  except (Exception, SystemExit) as error:  # It is the user's own code.
    raise InputError(f'got config={path}, which fails with {type(error).__name__}: {error}; '
                     'expected a config file') from error
  finally:
    sys.path.remove(neighbors)
  if not isinstance(config, ConfigDict):
    raise InputError(f'got config={path}, whose get_config returns {type(config).__name__}; '
                     'expected a ConfigDict')
  return config


def flat(config: Mapping | ConfigDict) -> dict[str, Any]:
  """Returns {'local.lr': 0.05, ...}."""
  values = {}
  for name, value in _items(config):
    if isinstance(value, Mapping | ConfigDict):
      values |= {f'{name}.{key}': v for key, v in flat(value).items()}
    else:
      values[name] = value
  return values


def _items(config):
  """Yields the items of a mapping; a required placeholder without a value is None."""
  for name in config:
    try:
      yield name, config[name]
    except RequiredValueError:
      yield name, None
