"""From a config to an experiment: data, networks, devices; `methods` has the algorithms."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from ml_collections import ConfigDict
import numpy as np

from hmm_jax.client import mappers
from hmm_jax.data import augment, normalise
from hmm_jax.evaluate import evaluator
from hmm_jax.holdings import cohort, dataset, federation
from hmm_jax.methods import table
from hmm_jax.models import classifier, cnn, fusion, mlp, recurrent, resnet, vgg
from hmm_jax.trainer import Experiment, in_turn
from hmm_jax.types import Algorithm, Dataset, Federation, InputError, Model

__all__ = [
    'cohort', 'dataset', 'devices', 'experiment', 'federation', 'mapper', 'model', 'network']


def network(config: ConfigDict, data: Dataset) -> Model:
  """Makes the bare network, which takes normalised inputs.

  Raises:
    InputError: impossible sizes, tokens where none are read, or none where they are, or
      several modalities for a network of one.
  """
  x = data.x_train
  if isinstance(x, dict):
    if config.model != 'fusion':
      raise InputError(f'got model={config.model} with inputs of shapes {_shapes(x)}; expected '
                       'model=fusion')
  elif (tokens := normalise.is_tokens(x)) != (config.model == 'lstm'):
    wanted = 'uint8 or floating ones, or model=lstm' if tokens else 'integer tokens'
    raise InputError(f'got model={config.model} with {x.dtype} inputs of shape {x.shape[1:]}; '
                     f'expected {wanted}')
  settings = dict(classes=data.classes, input_shape=_shapes(x),
                  dtype=jnp.dtype(config.compute_dtype))
  return {
      'mlp': lambda: mlp.mlp(config.mlp.hidden, **settings),
      'cnn': lambda: cnn.cnn(config.cnn.size, **settings),
      'resnet': lambda: resnet.resnet(config.resnet.size, norm=config.resnet.norm, **settings),
      'vgg16': lambda: vgg.vgg16(norm=config.vgg16.norm, **settings),
      'fusion': lambda: fusion.fusion(**config.fusion, **settings),
      'lstm': lambda: recurrent.lstm(**config.lstm, vocabulary=_vocabulary(data), **settings),
  }[config.model]()


def _shapes(x):
  """Returns the shape of a row, or one for each modality."""
  return jax.tree.map(lambda leaf: leaf.shape[1:], x)


def _vocabulary(data):
  """Returns the number of tokens, the largest plus one."""
  splits = [x for x in (data.x_train, data.x_test) if x.size]
  least, most = min(x.min() for x in splits), max(x.max() for x in splits)
  if least < 0:
    raise InputError(f'got dataset={data.name}; its tokens go from {least} to {most}, expected '
                     'tokens from 0')
  return int(most) + 1


def model(config: ConfigDict, data: Dataset, federated: Federation) -> Model:
  """Makes the network that takes stored inputs: normalised and augmented inside."""
  x = data.x_train
  if config.augment != 'none' and all(leaf.ndim != 4 for leaf in jax.tree.leaves(x)):
    raise InputError(f'got augment={config.augment} with inputs of shape {_shapes(x)}; expected '
                     'images [H, W, C]')
  rows = np.unique(np.concatenate([
      index[:size] for index, size in zip(federated.clients.index, federated.clients.size)]))
  normalisers = {
      'standard': lambda: normalise.standard(data.name, federated.examples.x, rows),
      'none': lambda: partial(jax.tree.map, lambda leaf: leaf.astype(jnp.float32)),
  }
  augmentations = {'none': lambda: None,
                   'crop_flip': lambda: augment.on_images(augment.crop_flip(4))}
  return classifier.preprocessed(
      network(config, data), normalise=normalisers[config.normalise](),
      augment=augmentations[config.augment]())


def mapper(config: ConfigDict) -> mappers.Mapper:
  """Chooses how one device maps its clients.

  `auto` and `sharded`: in turn on a CPU, where a vmapped convolution is slow; by vmap on
  an accelerator (our choice: not measured there yet) or where a chunk is asked for.
  """
  on_cpu = jax.default_backend() == 'cpu'
  in_sequence = config.mapper == 'map' or (config.mapper != 'vmap' and on_cpu and not config.chunk)
  return mappers.one_by_one() if in_sequence else mappers.vectorised(config.chunk)


def devices(config: ConfigDict) -> tuple[Callable, Sharding]:
  """Returns a map from one device's mapper to that of all, and where arrays live."""
  if config.mapper in ('map', 'vmap') or len(jax.devices()) == 1:
    return lambda one: one, SingleDeviceSharding(jax.devices()[0])
  mesh = jax.make_mesh((len(jax.devices()),), ('clients',), axis_types=(AxisType.Auto,))
  return partial(mappers.sharded, mesh), NamedSharding(mesh, PartitionSpec())


def experiment(config: ConfigDict, data: Dataset, federated: Federation) -> Experiment:
  """Makes everything that `run` needs.

  Raises:
    InputError: settings that do not fit each other or the data.
  """
  table.check(config)
  selects = config.keep_best or config.stop.patience
  if selects and not len(federated.validation.rows):
    raise InputError(f'got keep_best={config.keep_best}, stop.patience={config.stop.patience} with '
                     f'partition.validation={config.partition.validation}; expected validation '
                     'rows to select on')
  check_own_rows(config, federated)
  spread, sharding = devices(config)
  net = model(config, data, federated)
  algorithm = table.algorithm(config, net, spread(mapper(config)), federated)
  placed = jax.device_put(federated, sharding)
  return Experiment(
      algorithm=algorithm,
      federation=placed,
      criterion=f'{selecting_view(algorithm, federated)}/validation/{config.selection}',
      evaluate=evaluator(net, federated, placed.examples, mapper=spread(mappers.one_by_one()),
                         sharding=sharding, batch=config.eval_batch),
      seeds=tuple(range(config.seed, config.seed + config.seeds)),
      seed_map={'in_turn': in_turn, 'together': jax.vmap}[config.seed_map],
      sharding=sharding,
      rounds=config.rounds,
      eval_every=config.eval_every,
      patience=config.stop.patience,
      keep_best=config.keep_best,
      keep=config.keep,
      tensorboard=config.tensorboard,
  )


def selecting_view(algorithm: Algorithm, federated: Federation) -> str:
  """Returns the view that a round is selected by: the clients' own models, if there are any."""
  views = jax.eval_shape(
      lambda key, f: algorithm.views(algorithm.init(key, f), f), jax.random.key(0), federated)
  return 'clients' if 'clients' in views else 'global'


def check_own_rows(config: ConfigDict, federated: Federation):
  """Checks that each client has rows to judge its model by, where it gets one of its own.

  Raises:
    InputError: one has none.
  """
  # `local` is a floor for all, also where only the global test counts.
  if config.algorithm in table.PERSONAL.keys() - {'local'}:
    why = f'algorithm={config.algorithm}'
  elif config.fine_tune.epochs:
    why = f'fine_tune.epochs={config.fine_tune.epochs}'
  else:
    return
  for name, split in (('validation', federated.validation), ('test', federated.test)):
    if len(without := np.flatnonzero(split.clients.size == 0)):
      # Where test rows are dealt alike, the share for test is not used.
      alike = name == 'test' and config.partition.test_rows == 'alike'
      key = 'test_rows' if alike else name
      wanted = 'own or pooled' if alike else 'a larger share'
      raise InputError(f'got partition.{key}={config.partition[key]}, which leaves client '
                       f'{without[0]} without a {name} row; expected {wanted}, or larger '
                       f'clients, for {why} makes a model for each')
