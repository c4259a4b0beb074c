"""Builds an experiment from a config: network, devices and method."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from ml_collections import ConfigDict
import numpy as np
import optax
import psutil

from hmm_jax import tree
from hmm_jax.algorithms.engines.fine_tuning import fine_tuned
from hmm_jax.algorithms.parts import LOCAL, Parts, in_rounds, one_global_model
from hmm_jax.client import mappers
from hmm_jax.client.initial import begun_from
from hmm_jax.data import augment, storage
from hmm_jax.experiment import blueprint, exported
from hmm_jax.experiment import config as configs
from hmm_jax.experiment.evaluate import evaluator
from hmm_jax.experiment.federation import names
from hmm_jax.experiment.outline import outline
from hmm_jax.experiment.trainer import in_turn
from hmm_jax.models import files
from hmm_jax.registry import section, suggestion
from hmm_jax.report import trackers
from hmm_jax.tasks import losses, metrics
from hmm_jax.types import (
  Algorithm,
  Array,
  Dataset,
  Experiment,
  Federation,
  InputError,
  Mapper,
  Model,
  Task,
)

_FEW = 20  # classes that any data set may have
_TRIED = 100  # examples on which a metric of one's own is tried
SEED_MAPS = {'in_turn': in_turn, 'together': jax.vmap}


def network(config: ConfigDict, data: Dataset) -> Model:
  """Makes the network for normalized inputs.

  Raises:
    InputError: invalid sizes, or inputs of a kind that the network does not take.
  """
  return blueprint.network(blueprint.without_normalization(config, data))


def model(config: ConfigDict, data: Dataset, federated: Federation) -> Model:
  """Makes the network for stored inputs, which it normalizes and augments."""
  return augmented(config, blueprint.describe(config, data, federated))


def augmented(config: ConfigDict, about: Mapping[str, Any]) -> Model:
  """Makes the network of a blueprint, with the augmentation of a config."""
  shapes = [tuple(entry['shape']) for entry in about['inputs']]
  if config.augment != 'none' and all(len(shape) != 3 for shape in shapes):
    raise InputError(f'got augment={config.augment} with inputs of shape '
                     f'{", ".join(map(str, shapes))}; expected images [H, W, C]')
  augmentations = {
      'none': lambda: None,
      'crop_flip': lambda: augment.on_images(augment.crop_flip(config.crop_padding))}
  return blueprint.model(about, augmentations[config.augment](), losses.chosen(config.loss, about))


def mapper(config: ConfigDict) -> Mapper:
  """Returns the mapper that applies local training to the clients of one device.

  `auto` and `sharded` map clients sequentially on a CPU, where a vmapped convolution is slow,
  and by vmap on an accelerator (our choice: not measured there yet) or if `chunk` is set.
  """
  on_cpu = jax.default_backend() == 'cpu'
  in_sequence = config.mapper == 'map' or (config.mapper != 'vmap' and on_cpu and not config.chunk)
  return mappers.one_by_one() if in_sequence else mappers.vectorized(config.chunk)


def devices(config: ConfigDict, found: Sequence[jax.Device]) -> tuple[Callable, Sharding]:
  """Returns a function from one device's mapper to that of the devices found, and the sharding."""
  if config.mapper in ('map', 'vmap') or len(found) == 1:
    return lambda one: one, SingleDeviceSharding(found[0])
  mesh = jax.make_mesh((len(found),), ('clients',), axis_types=(AxisType.Auto,), devices=found)
  return partial(mappers.sharded, mesh), NamedSharding(mesh, PartitionSpec())


def method(config: ConfigDict, net: Model, mapper: Mapper, federated: Federation) -> Algorithm:
  """Builds the method of a config, with fine-tuning if it is enabled.

  Raises:
    InputError: invalid settings.
  """
  record, parts = configs.method(config), Parts(config, net, mapper, federated)
  with section('local', LOCAL), section(record.name, record.settings):
    made = in_rounds(record.build(parts, configs.section(config, record)), config)
    settings = config.fine_tune
    if not settings.epochs:
      return made
    tunable = one_global_model(parts, made)
  if not tunable:
    raise InputError(f'got fine_tune.epochs={settings.epochs} with algorithm={config.algorithm}; '
                     'expected 0, or a method with one global model and no client models')
  train = parts.training(
      parts.plain_loss(), optimizer=optax.sgd(settings.lr or config.local.lr),
      epochs=settings.epochs, steps=0)
  return fine_tuned(made, train, mapper=mapper)


def experiment(config: ConfigDict, data: Dataset, federated: Federation, *,
               given: Mapping[str, Array] | None = None) -> Experiment:
  """Builds the experiment of a config, the input of `run`.

  Args:
    config: all settings.
    data, federated: made from them, on the host.
    given: the tensors of the model in config.init; None: initial models are drawn.

  Raises:
    InputError: settings that are inconsistent with each other, the data or the given model.
  """
  configs.check(config)
  selects = config.keep_best or config.stop.patience
  if selects and not len(federated.validation.rows):
    raise InputError(f'got keep_best={config.keep_best}, stop.patience={config.stop.patience} with '
                     f'partition.validation={config.partition.validation}; expected validation '
                     'examples to select a round')
  check_own_examples(config, federated)
  spread, sharding = devices(config, jax.devices())
  about = blueprint.describe(config, data, federated)
  net = augmented(config, about)
  further = metrics.named(config.metrics, net.task, np.asarray(federated.examples.y[:_TRIED]),
                          data.classes)
  if given is not None:
    net = begun(net, given, config)
  check_fits(net.nbytes, f'model={config.model} of')
  algorithm = method(config, net, spread(mapper(config)), federated)
  record = configs.method(config)
  with section(record.name, record.settings):
    view = selecting_view(algorithm, federated)
    states = jax.eval_shape(algorithm.init, jax.random.key(0), federated)
  check_fits(config.seeds * tree.nbytes(states),
             f'algorithm={config.algorithm} with the states of {config.seeds} seeds,')
  placed = jax.device_put(federated, sharding)
  return Experiment(
      algorithm=algorithm,
      federation=placed,
      criterion=f'{view}/validation/{selection(config, net.task, further)}',
      evaluate=evaluator(net, federated, placed.examples, mapper=spread(mappers.one_by_one()),
                         sharding=sharding, batch=config.eval_batch, further=further),
      seeds=tuple(range(config.seed, config.seed + config.seeds)),
      seed_map=SEED_MAPS[config.seed_map],
      sharding=sharding,
      rounds=config.rounds,
      eval_every=config.eval_every,
      patience=config.stop.patience,
      keep_best=config.keep_best,
      keep=config.keep,
      track=trackers.named(config.track),
      classes=data.classes if config.task == 'classification' else 0,
      client_names=names(federated, data),
      warnings=warnings(config, net, federated),
      init=net.init,
      about=about | {'federation': outline(federated)},
      given={} if given is None else {'tensors in init': storage.digest_of_arrays(given)},
  )


def selection(config: ConfigDict, task: Task, further: Collection[str]) -> str:
  """Returns the metric that selects a round.

  Raises:
    InputError: it is none of the run.
  """
  chosen, known = configs.selecting(config.selection, task.name), [*task.names, 'loss', *further]
  if chosen not in known:
    raise InputError(f'got selection={chosen} with task={task.name}; expected auto, '
                     f'{", ".join(known)}' + suggestion(chosen, known))
  return chosen


def begun(net: Model, given: Mapping[str, Array], config: ConfigDict) -> Model:
  """Returns the network with the model in config.init as its initial one.

  Raises:
    InputError: it is of another network.
  """
  shapes = lambda tensors: {name: x.shape for name, x in tensors.items()}
  exported.check_shapes(f'init={config.init}', shapes(given), shapes(files.flatten(net.shapes)),
                        f'model={config.model}')
  return begun_from(net, files.unflatten(dict(given)), config.init_spread)


def warnings(config: ConfigDict, net: Model, federated: Federation) -> tuple[str, ...]:
  """Returns a line for each thing that is allowed, but hardly meant."""
  batch, lines = min(config.local.batch, int(federated.clients.size.min())), []
  if 'batch_stats' in net.shapes and batch == 1:
    lines.append('BatchNorm is trained on batches of one example, of which it can learn nothing; '
                 'expected local.batch of at least 2, and as many examples of each client')
  y = np.asarray(federated.examples.y)
  if config.task == 'classification' and (found := len(np.unique(y))) > max(_FEW, len(y) / 4):
    lines.append(f'{len(y):,} examples have {found:,} classes; if their labels are numbers to '
                 'predict, task=regression learns these')
  return tuple(lines)


def check_fits(size: int, what: str):
  """Raises InputError unless so many bytes fit in the memory of a device."""
  stats = jax.local_devices()[0].memory_stats() or {}
  memory = stats.get('bytes_limit', psutil.virtual_memory().total)
  if size > memory:
    raise InputError(f'got {what} {size / 2**30:,.1f} GiB; expected what fits in '
                     f'{memory / 2**30:,.1f} GiB of memory')


def selecting_view(algorithm: Algorithm, federated: Federation) -> str:
  """Returns the view whose metric selects a round: `clients` if the algorithm has it."""
  views = jax.eval_shape(
      lambda key, f: algorithm.views(algorithm.init(key, f), f), jax.random.key(0), federated)
  return 'clients' if 'clients' in views else 'global'


def check_own_examples(config: ConfigDict, federated: Federation):
  """Checks that each client has own examples to evaluate on, if the method gives it a model.

  Raises:
    InputError: a client has none.
  """
  if 'own examples' in configs.method(config).needs:
    why = f'algorithm={config.algorithm}'
  elif config.fine_tune.epochs:
    why = f'fine_tune.epochs={config.fine_tune.epochs}'
  else:
    return
  for name, split in (('validation', federated.validation), ('test', federated.test)):
    if len(without := np.flatnonzero(split.clients.size == 0)):
      # With test_rows=alike, the share for test is not used.
      alike = name == 'test' and config.partition.test_rows == 'alike'
      key = 'test_rows' if alike else name
      wanted = 'own or pooled' if alike else 'a larger share'
      raise InputError(f'got partition.{key}={config.partition[key]}, which leaves client '
                       f'{without[0]} without a {name} example; expected {wanted}, or larger '
                       f'clients, as {why} makes a model for each client')
