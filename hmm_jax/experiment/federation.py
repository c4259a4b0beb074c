"""From a config to its federation: the data set, the server's examples, the clients' examples."""


from ml_collections import ConfigDict

from hmm_jax.data import arrays, corrupt, federate, server
from hmm_jax.data.partition import PARTITIONERS
from hmm_jax.data.sources import SOURCES
from hmm_jax.experiment import config as configs
from hmm_jax.registry import Partitioner, Source, find, section, suggestion
from hmm_jax.types import Dataset, Federation, InputError


def dataset(config: ConfigDict) -> Dataset:
  """Loads the named data set, or a share of it: embedded, a file, or a prepared TFDS set."""
  loaded, kind = _load(config, config.dataset), config.corrupt.kind
  if kind.startswith('labels:'):  # Here, as long as the rows are those of the file.
    loaded = loaded._replace(relabeled=arrays.labels(
        kind.removeprefix('labels:'), len(loaded.y_train), loaded.classes))
  return federate.subset(loaded, config.subset, config.partition.seed)


def _load(config, name, key='dataset'):
  """Loads a data set: of a built-in source, of one's own, or of TFDS by its name."""
  source, _, path = name.partition(':')
  if source in SOURCES and SOURCES[source].path == bool(path):
    record = SOURCES[source]
  elif source in SOURCES or (':' in name and key in configs.references({key: name})):
    record, path = find(key, name, SOURCES, Source), ''
  else:
    record, path = SOURCES['tfds'], name
  try:
    return record.load(path, configs.section(config, record), config.data_dir)
  except InputError as error:
    near = suggestion(name, [record.form for record in SOURCES.values()])
    raise InputError(f'{error}{near}' if record.name == 'tfds' else str(error)) from error


def cohort(config: ConfigDict) -> int:
  """Returns the clients of a round; 0 where that is not known yet."""
  everybody = 'all clients' in configs.method(config).needs or not config.participation
  return config.clients if everybody else config.participation


def federation(config: ConfigDict, data: Dataset) -> Federation:
  """Gives the server its rows, deals the others to clients and corrupts some of these.

  Arrays stay on the host. Let go of `data` afterwards.
  """
  with section('server', server.SETTINGS):
    data, held = _serve(config, data)
  with section('corrupt', corrupt.SETTINGS):
    change = _corruption(config, data)
  made = _deal(config, data)._replace(server=held)
  if change is None:
    return made
  with section('corrupt', corrupt.SETTINGS):
    return corrupt.corrupt(made, change, share=config.corrupt.clients, seed=config.partition.seed)


def _corruption(config, data):
  """Returns what befalls the rows of a corrupted client, None for nothing.

  Raises:
    InputError: an unknown kind, or one that does not go together with the data.
  """
  kind, rate = config.corrupt.kind, config.corrupt.rate
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
    raise InputError(f'got partition.test_rows=pooled with corrupt.kind={kind}; rows of the '
                     "set's own test split have no other labels, expected own or alike")
  return kinds[name]()


def _serve(config, data):
  """Returns what is left to deal to clients, and the Server, if there is one.

  Raises:
    InputError: a source that is unknown or has too few rows, or no row for who needs some.
  """
  settings, size, classes = config.server, _server_rows(config), data.classes
  source, seed = settings.source, settings.seed
  domain = source.startswith('domain:')
  # A domain that the server gets no row of is refused below: clients would train on it.
  if not size and not domain:
    return data, None
  if source == 'held_out':
    data, examples = server.held_out(data, size, seed)
  elif domain:
    data, examples = server.of_domain(data, _domain(source), size, seed)
  else:
    found = _other(config)
    examples, classes = server.other(data, found, size, seed), found.classes
  examples = server.noisy_labels(examples, settings.noise, classes, seed)
  return data, server.central(examples, settings.held_out, seed)


def _server_rows(config):
  size, learns = config.server.size, 'server examples' in configs.method(config).needs
  if learns and not size:
    raise InputError(f'got server.size=0 with algorithm={config.algorithm}; expected at least 2 '
                     'rows')
  return size if size >= 0 else server.DEFAULT_SIZE * learns


def _domain(source):
  try:
    return int(source.removeprefix('domain:'))
  except ValueError as error:
    raise InputError(f'got server.source={source}; expected domain:N of a whole number') from error


def _other(config):
  """Loads the data set that the server's rows come from."""
  source = config.server.source
  wanted = 'held_out, domain:N or the name of another data set'
  if source == config.dataset:
    raise InputError(f"got server.source={source}, which is the clients'; expected {wanted}")
  try:
    return _load(config, source, 'server.source')
  except InputError as error:
    raise InputError(f'got server.source={source}; expected {wanted}'
                     f'{suggestion(source, ("held_out",))}: {error}') from error


def _deal(config, data):
  settings = config.partition
  record = find('partition.kind', settings.kind, PARTITIONERS, Partitioner)
  own = config[record.name] if record.name not in PARTITIONERS else _sized(config, data)
  if settings.test_rows == 'pooled' and not record.labels and len(data.y_test):
    raise InputError(f'got partition.test_rows=pooled with partition.kind={settings.kind}; examples '
                     "of the set's own test split have no owner or domain, expected own or alike")
  name = 'partition' if record.name in PARTITIONERS else record.name
  with section('partition', ('kind', *federate.SETTINGS)), section(name, record.settings):
    made = federate.federate(
        data, lambda pool, rng: record.assign(pool, config.clients, rng, own),
        divide=federate.split_then_deal if record.overlaps else federate.deal_then_split,
        validation=settings.validation, test=settings.test, seed=settings.seed,
        test_rows=federate.TESTS[settings.test_rows], held_out=settings.global_test)
  total = len(made.clients.id)
  if cohort(config) > total:
    raise InputError(f'got participation={config.participation}; expected 0 (all) to {total}, '
                     'the number of clients')
  return made


def _sized(config, data):
  """Returns the settings of a built-in partitioner, with the size of a client filled in."""
  settings = config.partition.copy_and_resolve_references()
  settings.size = settings.size or len(data.y_train) // max(config.clients, 1)
  return settings
