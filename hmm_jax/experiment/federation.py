"""Builds the federation of a config: data set, server examples and client examples."""

from collections.abc import Callable
import functools
import os
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from hmm_jax.data import arrays, corrupt, federate, memory, numbering, server, storage, values
from hmm_jax.data.partition import PARTITIONERS
from hmm_jax.data.sources import SOURCES, tfds
from hmm_jax.experiment import config as configs
from hmm_jax.registry import Partitioner, Source, find, section, suggestion
from hmm_jax.tasks import TASKS, groups
from hmm_jax.types import Dataset, Federation, InputError


def dataset(config: ConfigDict, given: Dataset | None = None) -> Dataset:
  """Loads the data set of a config, or a subset: built-in, a file, or a prepared TFDS set.

  Its labels are those of the config's task. A set that is `given` takes the place of the named one.
  """
  loaded = _load(config, config.dataset) if given is None else prepared(config, given)
  kind = config.corrupt.kind
  if kind.startswith('labels:'):  # Before subsetting: the labels are for all examples of the set.
    loaded = loaded._replace(relabeled=arrays.labels(
        kind.removeprefix('labels:'), len(loaded.y_train), numbering.names(loaded)))
  return federate.subset(loaded, config.subset, config.partition.seed)


@functools.wraps(memory.dataset)
def given(x: Any, *args, **more) -> Dataset:
  if isinstance(x, ConfigDict):
    return dataset(x)
  return memory.dataset(x, *args, **more)


def _load(config, name, key='dataset'):
  """Loads a data set by name: from a built-in source, a user's record, or TFDS."""
  source, _, path = name.partition(':')
  if source in SOURCES and SOURCES[source].path == bool(path):
    record = SOURCES[source]
  elif source in SOURCES or (':' in name and key in configs.references({key: name})):
    forms = {record.form: record for record in SOURCES.values()}
    record, path = find(key, name, forms, Source, memory.FUNCTION), ''
  else:
    record, path = SOURCES['tfds'], name
  try:
    loaded = record.load(path, configs.section(config, record), config.data_dir)
  except tfds.Unknown as error:
    forms = [record.form for record in SOURCES.values()]
    raise InputError(f'{error}; or one of {", ".join(forms)}, package.module:RECORD, '
                     f'path/to/file.py:RECORD{_meant(name) or suggestion(name, forms)}') from error
  except MemoryError as error:
    raise InputError(f'got {key}={name}, which does not fit into memory; expected a smaller data '
                     f'set: {error}') from error
  if not isinstance(loaded, Dataset):
    raise InputError(f'got {key}={name}, which loads {type(loaded).__name__}; expected a Dataset')
  return prepared(config, loaded)


def prepared(config: ConfigDict, data: Dataset) -> Dataset:
  """Returns a data set with the labels of a config's task.

  Raises:
    InputError: it does not suit the task, or is not what a Dataset must be.
  """
  found = TASKS[config.task].prepare(data)
  values.check(found)
  return found


def _meant(name):
  ends = {'npz': ('.npz',), 'text': ('.jsonl', '.jsonl.gz', '.jsonl.xz'),
          'csv': ('.csv', '.csv.gz'), 'hf': ('.parquet',)}
  return ''.join(f'; did you mean {source}:{name}?' for source, suffixes in ends.items()
                 if name.endswith(suffixes) and os.path.isfile(os.path.expanduser(name)))


def cohort(config: ConfigDict) -> int:
  """Returns the number of clients per round; 0 if not known yet."""
  takes_all = 'all clients' in configs.method(config).needs or not config.participation
  return config.clients if takes_all else config.participation


def federation(config: ConfigDict, data: Dataset) -> Federation:
  """Splits off the server's examples, partitions the others over clients and corrupts some.

  Arrays stay on the host. Delete references to `data` afterwards to free memory.
  """
  group = grouping(config, data)
  with section('server', server.SETTINGS):
    data, held = _split_server(config, data)
  with section('corrupt', corrupt.SETTINGS):
    change = _corruption(config, data)
  made = _partition(config, data, group)._replace(server=held)
  if change is None:
    return made
  with section('corrupt', corrupt.SETTINGS):
    return corrupt.corrupt(made, change, share=config.corrupt.clients, seed=config.partition.seed)


def grouping(config: ConfigDict, data: Dataset) -> Callable | None:
  """Returns (y) -> [n], the groups by which partitions deal; None if labels are classes."""
  goes_by = TASKS[config.task].groups
  if goes_by == 'classes':
    return None
  return groups.by_quantile(data.y_train, config.regression.quantiles) if goes_by else groups.one


def counts(config: ConfigDict, federated: Federation, data: Dataset) -> np.ndarray:
  """Counts each client's training examples by class, or by group: [K, C]."""
  if (group := grouping(config, data)) is None:
    return federate.label_counts(federated, data.classes)
  number = group(np.asarray(federated.examples.y))
  return federate.label_counts(federated, 1 + int(number.max()), number)


def described(config: ConfigDict, federated: Federation, data: Dataset) -> list[tuple[str, str]]:
  """Returns a summary of a federation as (name, figures) pairs, for a short table."""
  return federate.describe(federated, data, counts(config, federated, data),
                           source=config.server.source)


def fingerprint(config: ConfigDict, federated: Federation) -> dict[str, str]:
  """Returns digests of all that a run is trained on, by what they are of.

  Args:
    config: its settings, some of which name files.
    federated: made from them, on the host.
  """
  parts = {'inputs': federated.examples.x, 'labels': federated.examples.y,
           'clients, validation or test examples':
               (federated.clients, federated.validation, federated.test),
           'server examples': federated.server}
  files = {key: os.path.expanduser(value.partition(':')[2])
           for key, value in configs.flat(config).items()
           if isinstance(value, str) and key not in configs.REFERENCES}
  return ({what: storage.digest_of_arrays(part) for what, part in parts.items()}
          | {f'content of the file in {key}': storage.digest_of_file(path)
             for key, path in files.items() if os.path.isfile(path)})


def _corruption(config, data):
  """Returns the function that corrupts a client's examples; None for no corruption.

  Raises:
    InputError: an unknown kind, or one that the data set does not support.
  """
  kind, rate = config.corrupt.kind, config.corrupt.rate
  if kind not in ('none', 'pixels') and config.task != 'classification':
    raise InputError(f'got kind={kind} with task={config.task}; expected none or pixels, as its '
                     'labels are no classes')
  kinds = {
      'none': lambda: None,
      'symmetric': lambda: corrupt.symmetric(rate, data.classes),
      'pairwise': lambda: corrupt.pairwise(rate, data.classes),
      'random': lambda: corrupt.random(rate, data.classes),
      'pixels': lambda: corrupt.pixels(rate, data.x_train),
      'labels:PATH': lambda: corrupt.relabeled(data.relabeled),
  }
  name = 'labels:PATH' if kind.startswith('labels:') else kind
  if name not in kinds:
    raise InputError(f'got corrupt.kind={kind}; expected one of {", ".join(kinds)}'
                     + suggestion(kind.partition(':')[0], tuple(kinds)))
  if name == 'labels:PATH' and config.partition.test_rows == 'pooled' and len(data.y_test):
    raise InputError(f'got partition.test_rows=pooled with corrupt.kind={kind}; expected own or '
                     "alike, as the set's test split has no such labels")
  return kinds[name]()


def _split_server(config, data):
  """Returns the data set without the server's examples, and the Server, if there is one.

  Raises:
    InputError: an unknown source, or too few examples for the server.
  """
  settings, size, classes = config.server, _server_size(config), data.classes
  source, seed = settings.source, settings.seed
  domain = source.startswith('domain:')
  # With a domain, size 0 is rejected below: clients would train on this domain.
  if not size and not domain:
    return data, None
  if source == 'held_out':
    data, examples = server.held_out(data, size, seed)
  elif domain:
    data, examples = server.of_domain(data, _domain(source), size, seed)
  else:
    found = server.aligned(_server_data(config), data)
    examples, classes = server.other(data, found, size, seed), found.classes
  if settings.noise and config.task != 'classification':
    raise InputError(f'got noise={settings.noise} with task={config.task}; expected 0, as its '
                     'labels are no classes')
  if settings.noise:
    examples = server.noisy_labels(examples, settings.noise, classes, seed)
  return data, server.central(examples, settings.held_out, seed)


def _server_size(config):
  size, learns = config.server.size, 'server examples' in configs.method(config).needs
  if learns and not size:
    raise InputError(f'got server.size=0 with algorithm={config.algorithm}; expected at least 2 '
                     'examples')
  return size if size >= 0 else server.DEFAULT_SIZE * learns


def _domain(source):
  try:
    return int(source.removeprefix('domain:'))
  except ValueError as error:
    raise InputError(f'got server.source={source}; expected domain:N with an integer N') from error


def _server_data(config):
  """Loads the separate data set of the server's examples."""
  source = config.server.source
  wanted = 'held_out, domain:N or the name of another data set'
  if source == config.dataset:
    raise InputError(f"got server.source={source}, the clients' data set; expected {wanted}")
  try:
    return _load(config, source, 'server.source')
  except InputError as error:
    raise InputError(f'got server.source={source}; expected {wanted}'
                     f'{suggestion(source, ("held_out",))}: {error}') from error


def _partition(config, data, group):
  settings = config.partition
  record = find('partition.kind', settings.kind, PARTITIONERS, Partitioner)
  if record.classes and not TASKS[config.task].groups:
    others = [name for name, other in PARTITIONERS.items() if not other.classes]
    raise InputError(f'got partition.kind={settings.kind} with task={config.task}; expected one of '
                     f'{", ".join(others)}, as its labels are no classes')
  own = config[record.name] if record.name not in PARTITIONERS else _sized(config, data)
  if settings.test_rows == 'pooled' and not record.labels and len(data.y_test):
    raise InputError(f'got partition.test_rows=pooled with partition.kind={settings.kind}; '
                     "expected own or alike, as the set's test split has no owners or domains")
  name = 'partition' if record.name in PARTITIONERS else record.name
  with section('partition', ('kind', *federate.SETTINGS)), section(name, record.settings):
    made = federate.federate(
        data, lambda pool, rng: record.assign(pool, config.clients, rng, own),
        divide=federate.split_then_deal if record.overlaps else federate.deal_then_split,
        validation=settings.validation, test=settings.test, seed=settings.seed,
        test_rows=federate.TESTS[settings.test_rows], held_out=settings.global_test,
        groups=group and (group(data.y_train), group(data.y_test)))
  made = made._replace(owner=_owners(made, data))
  total = len(made.clients.id)
  if cohort(config) > total:
    raise InputError(f'got participation={config.participation}; expected 0 (all) to {total}, '
                     'the number of clients')
  return made


def _owners(made, data):
  """Returns the number of each client's natural owner, [K]; None where a client has several."""
  pooled = len(made.examples.y) != len(data.y_train) + len(data.y_test)
  if data.client is None or not data.owners or pooled:
    return None
  client = np.append(data.client, np.full(len(data.y_test), -1))
  each = [client[rows] for rows in made.clients.valid()]
  return np.array([own[0] for own in each], np.int32) if all(
      own[0] >= 0 and (own == own[0]).all() for own in each) else None


def names(federated: Federation, data: Dataset) -> tuple[str, ...]:
  """Returns what files call the owners of the clients; () if they have no names."""
  if federated.owner is None:
    return ()
  return tuple(data.owners[owner] for owner in np.asarray(federated.owner).tolist())


def _sized(config, data):
  """Returns the settings of a built-in partitioner, with the default size of a client filled in."""
  settings = config.partition.copy_and_resolve_references()
  settings.size = settings.size or len(data.y_train) // max(config.clients, 1)
  return settings
