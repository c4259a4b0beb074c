"""From a config to who holds what: the data set, the server's rows, the clients' rows."""

from functools import partial
import os

from ml_collections import ConfigDict

from hmm_jax.config import suggestion
from hmm_jax.data import (
  clients,
  corrupt,
  crisismmd,
  ngrams,
  npz,
  offline,
  partition,
  pictures,
  server,
  text,
  tfds,
)
from hmm_jax.methods import table
from hmm_jax.types import Dataset, Federation, InputError

_SERVER_ROWS = 200  # where an algorithm learns on them, and their number is left to it
_CRISISMMD = '~/tensorflow_datasets/crisismmd'


def dataset(config: ConfigDict) -> Dataset:
  """Loads the named data set, or a share of it: embedded, a file, or a prepared TFDS set."""
  loaded, kind = _load(config, config.dataset), config.corrupt.kind
  if kind.startswith('labels:'):  # Here, as long as the rows are those of the file.
    loaded = loaded._replace(relabelled=npz.labels(
        kind.removeprefix('labels:'), len(loaded.y_train), loaded.classes))
  return clients.subset(loaded, config.subset, config.partition.seed)


def _load(config, name):
  if name == 'digits':
    return offline.digits()
  if name == 'synthetic':
    return offline.synthetic(**config.synthetic)
  if name == 'crisismmd':
    return _crisismmd(config.crisismmd, config.data_dir or _CRISISMMD)
  if name.startswith('npz:'):
    return npz.load(name.removeprefix('npz:'))
  if name.startswith('text:'):
    return text.load(name.removeprefix('text:'), **config.text)
  return tfds.load(name, config.data_dir or None)


def _crisismmd(settings, folder):
  """Loads the modalities that the config names, each by its own reader."""
  def embed(tweets, texts):
    if settings.vectors:
      return npz.vectors(settings.vectors, tweets)
    return ngrams.hashed(texts, features=settings.ngrams)

  decode = partial(pictures.pictures, size=settings.image_size,
                   cache=settings.cache or os.path.join(folder, 'cache'))
  return crisismmd.load(
      folder, task=settings.task, labels=settings.labels, broken=settings.broken,
      embed=None if settings.modalities == 'image' else embed,
      decode=None if settings.modalities == 'text' else decode)


def cohort(config: ConfigDict) -> int:
  """Returns the clients of a round; 0 where that is not known yet."""
  everybody = config.algorithm in table.EVERYBODY or not config.participation
  return config.clients if everybody else config.participation


def federation(config: ConfigDict, data: Dataset) -> Federation:
  """Gives the server its rows, deals the others to clients and corrupts some of these.

  Arrays stay on the host. Let go of `data` afterwards.
  """
  data, held = _serve(config, data)
  change = _corruption(config, data)
  made = _deal(config, data)._replace(server=held)
  if change is None:
    return made
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
      'labels:PATH': lambda: corrupt.relabelled(data.relabelled),
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
  size, learns = config.server.size, config.algorithm in table.HYBRID
  if learns and not size:
    raise InputError(f'got server.size=0 with algorithm={config.algorithm}; expected at least 2 '
                     'rows')
  return size if size >= 0 else _SERVER_ROWS * learns


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
    return _load(config, source)
  except InputError as error:
    raise InputError(f'got server.source={source}; expected {wanted}'
                     f'{suggestion(source, ("held_out",))}: {error}') from error


def _deal(config, data):
  settings = config.partition
  skew = {'alpha': settings.alpha, 'min_size': settings.min_size}
  deal = {
      'iid': lambda pool: partition.iid,
      'dirichlet': lambda pool: partial(partition.dirichlet, **skew),
      'shards': lambda pool: partial(partition.shards, classes_per_client=settings.shards),
      'clusters': lambda pool: partial(
          partition.clusters, clusters=settings.clusters, alpha=settings.cluster_alpha,
          classes_per_cluster=settings.classes_per_cluster),
      'quantity': lambda pool: partial(partition.quantity, **skew),
      'natural': lambda pool: partial(partition.natural, owner=pool.client),
      'domain': lambda pool: partial(partition.domain, domain=pool.domain),
      'resample': lambda pool: partial(
          partition.resample, alpha=settings.alpha, classes=data.classes,
          size=settings.size or len(data.y_train) // max(config.clients, 1)),
  }[settings.kind]
  test_rows = {'own': clients.own_test, 'alike': clients.alike_test,
               'pooled': clients.pooled_test}[settings.test_rows]
  if settings.test_rows == 'pooled' and settings.kind in ('natural', 'domain') and len(data.y_test):
    raise InputError(f'got partition.test_rows=pooled with partition.kind={settings.kind}; rows of '
                     "the set's own test split have no owner or domain, expected own or alike")
  overlapping = settings.kind == 'resample'
  made = clients.federate(
      data, lambda pool, rng: deal(pool)(pool.y_train, config.clients, rng),
      divide=clients.split_then_deal if overlapping else clients.deal_then_split,
      validation=settings.validation, test=settings.test, seed=settings.seed,
      test_rows=test_rows)
  total = len(made.clients.id)
  if cohort(config) > total:
    raise InputError(f'got participation={config.participation}; expected 0 (all) to {total}, '
                     'the number of clients')
  return made
