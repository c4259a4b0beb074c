"""From a config to an experiment: this file knows every name there is."""

from collections.abc import Callable
from functools import partial
import inspect
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from ml_collections import ConfigDict
import numpy as np
import optax

from hmm_jax.algorithms import centralised, fedavg, fedopt, gossip, local, scaffold, topology
from hmm_jax.algorithms.schedule import schedule
from hmm_jax.client import local as client_local
from hmm_jax.client import losses, mappers
from hmm_jax.client import participation as participate
from hmm_jax.config import suggestion
from hmm_jax.data import augment, clients, normalise, npz, offline, partition, tfds
from hmm_jax.evaluate import evaluator
from hmm_jax.merging import calibrate
from hmm_jax.models import classifier, cnn, mlp, resnet, vgg
from hmm_jax.trainer import Experiment, in_turn
from hmm_jax.types import Algorithm, Dataset, Federation, InputError, Local, Loss, Model

EVERYBODY = ('gossip', 'centralised')  # Algorithms in which all clients train in every round.
MERGE_ROWS = 10**7  # The most that a merged model is recalibrated on.
WEIGHTS = {'size': participate.by_size, 'uniform': participate.uniform}


def dataset(config: ConfigDict) -> Dataset:
  """Loads the named data set: embedded, an npz file, or a prepared TFDS set."""
  if config.dataset == 'digits':
    return offline.digits()
  if config.dataset == 'synthetic':
    return offline.synthetic(**config.synthetic)
  if config.dataset.startswith('npz:'):
    return npz.load(config.dataset.removeprefix('npz:'))
  return tfds.load(config.dataset, config.data_dir or None)


def cohort(config: ConfigDict) -> int:
  """Returns the clients of a round; 0 where that is not known yet."""
  everybody = config.algorithm in EVERYBODY or not config.participation
  return config.clients if everybody else config.participation


def federation(config: ConfigDict, data: Dataset) -> Federation:
  """Deals the data set to clients; arrays stay on the host. Let go of `data` afterwards."""
  settings = config.partition
  skew = {'alpha': settings.alpha, 'min_size': settings.min_size}
  deal = {
      'iid': lambda pool: partition.iid,
      'dirichlet': lambda pool: partial(partition.dirichlet, **skew),
      'shards': lambda pool: partial(partition.shards, classes_per_client=settings.shards),
      'quantity': lambda pool: partial(partition.quantity, **skew),
      'natural': lambda pool: partial(partition.natural, owner=pool.client),
      'domain': lambda pool: partial(partition.domain, domain=pool.domain),
      'resample': lambda pool: partial(
          partition.resample, alpha=settings.alpha, classes=data.classes,
          size=settings.size or len(data.y_train) // max(config.clients, 1)),
  }[settings.kind]
  overlapping = settings.kind == 'resample'
  made = clients.federate(
      data, lambda pool, rng: deal(pool)(pool.y_train, config.clients, rng),
      divide=clients.split_then_deal if overlapping else clients.deal_then_split,
      validation=settings.validation, test=settings.test, seed=settings.seed)
  total = len(made.clients.id)
  if cohort(config) > total:
    raise InputError(f'got participation={config.participation}; expected 0 (all) to {total}, '
                     'the number of clients')
  return made


def network(config: ConfigDict, data: Dataset) -> Model:
  """Makes the bare network, which takes normalised inputs."""
  settings = dict(classes=data.classes, input_shape=data.x_train.shape[1:],
                  dtype=jnp.dtype(config.compute_dtype))
  return {
      'mlp': lambda: mlp.mlp(config.mlp.hidden, **settings),
      'cnn': lambda: cnn.cnn(config.cnn.size, **settings),
      'resnet': lambda: resnet.resnet(config.resnet.size, norm=config.resnet.norm, **settings),
      'vgg16': lambda: vgg.vgg16(norm=config.vgg16.norm, **settings),
  }[config.model]()


def model(config: ConfigDict, data: Dataset, federated: Federation) -> Model:
  """Makes the network that takes stored inputs: normalised and augmented inside."""
  rows = np.unique(np.concatenate([
      index[:size] for index, size in zip(federated.clients.index, federated.clients.size)]))
  normalisers = {
      'standard': lambda: normalise.normaliser(
          *normalise.constants(data.name, federated.examples.x, rows)),
      'none': lambda: lambda x: x.astype(jnp.float32),
  }
  augmentations = {'none': lambda: None, 'crop_flip': lambda: augment.crop_flip(4)}
  return classifier.preprocessed(
      network(config, data), normalise=normalisers[config.normalise](),
      augment=augmentations[config.augment]())


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Makes a client's optimiser: clipping, then weight decay, then the step."""
  settings = config.local
  parts = [optax.clip_by_global_norm(settings.clip)] if settings.clip else []
  if settings.clip_value:
    parts.append(optax.clip(settings.clip_value))
  if settings.optimizer == 'adamw':
    return optax.chain(*parts, optax.adamw(settings.lr, weight_decay=settings.weight_decay))
  if settings.weight_decay:
    parts.append(optax.add_decayed_weights(settings.weight_decay))
  return optax.chain(*parts, optax.sgd(settings.lr, momentum=settings.momentum or None))


def server_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Makes FedOpt's server optimiser: the named optax factory, with the settings it takes."""
  settings = dict(config.fedopt, learning_rate=config.fedopt.lr)
  factory = getattr(optax, config.fedopt.optimizer, None)
  takes = inspect.signature(factory).parameters if inspect.isfunction(factory) else {}
  if 'learning_rate' not in takes:
    common = ('sgd', 'adam', 'adagrad', 'yogi', 'adamw', 'lion', 'rmsprop')
    raise InputError(f'got fedopt.optimizer={config.fedopt.optimizer}; expected an optax '
                     f'optimiser such as {", ".join(common)}'
                     + suggestion(config.fedopt.optimizer, common))
  return factory(**{name: value for name, value in settings.items() if name in takes})


def training(config: ConfigDict, loss: Loss,
             make: Callable = client_local.local_training) -> Local:
  """Makes one client's training from the `local` settings."""
  return make(
      loss, optimizer(config), batch=config.local.batch, epochs=config.local.epochs,
      steps=config.local.steps)


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


def gossiping(config: ConfigDict, net: Model, loss: Loss, lift: mappers.Mapper,
              federated: Federation) -> Algorithm:
  """Makes gossip with its topology, schedule and final merge.

  Raises:
    InputError: one of them is impossible, or there is no data to recalibrate on.
  """
  settings, agents = config.gossip, len(federated.clients.id)
  graph = partial(topology.topology, agents=agents, weights=settings.weights,
                  degree=settings.degree, edge_probability=settings.edge_probability,
                  seed=settings.graph_seed)
  talk = graph(settings.topology)
  sources = {
      'train': lambda f: (participate.pool(f.clients).index[0], f.clients.size.sum()),
      'validation': lambda f: (f.validation.rows, len(f.validation.rows)),
  }
  talk_when = schedule(
      settings.schedule, rate=settings.rate, rounds=config.rounds, max_rate=talk.max_rate)
  recalibrated = settings.merged_statistics == 'recalibrated'
  if settings.merge_batches * config.local.batch > MERGE_ROWS:
    raise InputError(f'got gossip.merge_batches={settings.merge_batches}; expected at most '
                     f'{MERGE_ROWS // config.local.batch}, {MERGE_ROWS} rows')
  if recalibrated and settings.merge_data == 'validation' and not len(federated.validation.rows):
    raise InputError(f'got gossip.merge_data=validation with partition.validation='
                     f'{config.partition.validation}; expected rows to recalibrate the merged '
                     'model on, or gossip.merged_statistics=averaged')
  made = gossip.gossip(
      net, training(config, loss, client_local.continued_training), topology=talk,
      schedule=talk_when, mapper=lift, init_private=optimizer(config).init,
      begin={'same': gossip.same_start, 'different': gossip.different_starts}[settings.start],
      share={'mixed': gossip.everything, 'kept': gossip.parameters}[settings.statistics],
      final=final_merge(settings.final_merge, graph),
      calibrate=calibrate.calibration(
          net, sources[settings.merge_data], batches=settings.merge_batches,
          batch=config.local.batch) if recalibrated else lambda variables, _: variables)
  over = [('schedule over that rate', settings.schedule)] if settings.schedule else []
  return made._replace(facts=(*topology.describe(talk, settings.rate), *over))


def final_merge(name: str, graph: Callable) -> tuple[topology.Topology, int] | None:
  """Reads gossip.final_merge: a topology and its number of rounds, or None.

  Raises:
    InputError: it can't be read.
  """
  if name == 'none':
    return None
  if name == 'uniform':
    return graph('complete'), 1
  found = re.fullmatch(r'(.+):0*([1-9]\d{0,3})', name)
  if not found:
    raise InputError(f'got gossip.final_merge={name}; expected none, uniform or TOPOLOGY:ROUNDS '
                     'with 1 to 9999 rounds, such as exponential:5')
  try:
    return graph(found[1]), int(found[2])
  except InputError as error:
    raise InputError(f'got gossip.final_merge={name}: {error}') from error


def algorithm(config: ConfigDict, net: Model, lift: mappers.Mapper,
              federated: Federation) -> Algorithm:
  """Makes the named algorithm."""
  plain = losses.cross_entropy(net, smoothing=config.local.label_smoothing)
  loss = losses.proximal(plain, config.local.prox) if config.local.prox else plain
  settings = dict(mapper=lift, participation=config.participation)
  return {
      'fedavg': lambda: fedavg.fedavg(
          net, training(config, loss), weigh=WEIGHTS[config.fedavg.weights], **settings),
      'fedprox': lambda: fedavg.fedavg(
          net, training(config, losses.proximal(plain, config.fedprox.mu)),
          weigh=WEIGHTS[config.fedprox.weights], **settings),
      'fedopt': lambda: fedopt.fedopt(
          net, training(config, loss), server=server_optimizer(config),
          weigh=WEIGHTS[config.fedopt.weights], **settings),
      'scaffold': lambda: scaffold.scaffold(
          net, training(config, losses.corrected(loss)), lr=config.local.lr,
          server_lr=config.scaffold.server_lr, **settings),
      'gossip': lambda: gossiping(config, net, loss, lift, federated),
      'local': lambda: local.local(net, training(config, loss), **settings),
      'centralised': lambda: centralised.centralised(net, training(config, loss), mapper=lift),
  }[config.algorithm]()


def check_algorithm(config: ConfigDict):
  """Checks settings that an algorithm cannot honour.

  Raises:
    InputError: SCAFFOLD without plain SGD, or FedProx with a second proximal term.
  """
  step = config.local
  if config.algorithm == 'scaffold' and (step.optimizer, step.momentum) != ('sgd', 0):
    raise InputError(f'got local.optimizer={step.optimizer}, local.momentum={step.momentum} with '
                     'algorithm=scaffold; expected sgd without momentum, for which its control '
                     'variates are defined')
  if step.label_smoothing >= 1:
    raise InputError(f'got local.label_smoothing={step.label_smoothing}; expected a share of the '
                     'label below 1')
  if config.algorithm == 'fedprox' and step.prox:
    raise InputError(f'got local.prox={step.prox} with algorithm=fedprox; expected 0, since '
                     f'fedprox.mu={config.fedprox.mu} is its proximal term')


def experiment(config: ConfigDict, data: Dataset, federated: Federation) -> Experiment:
  """Makes everything that `run` needs.

  Raises:
    InputError: settings that do not fit each other or the data.
  """
  check_algorithm(config)
  selects = config.keep_best or config.stop.patience
  if selects and not len(federated.validation.rows):
    raise InputError(f'got keep_best={config.keep_best}, stop.patience={config.stop.patience} with '
                     f'partition.validation={config.partition.validation}; expected validation '
                     'rows to select on')
  spread, sharding = devices(config)
  net = model(config, data, federated)
  placed = jax.device_put(federated, sharding)
  return Experiment(
      algorithm=algorithm(config, net, spread(mapper(config)), federated),
      federation=placed,
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
