"""From a config to an algorithm: this file knows every name of one."""

from collections.abc import Callable
from functools import partial
import inspect
import re

from ml_collections import ConfigDict
import optax

from hmm_jax.algorithms import centralised, fedavg, fedopt, gossip, local, scaffold, topology
from hmm_jax.algorithms.schedule import schedule
from hmm_jax.client import local as client_local
from hmm_jax.client import losses, mappers
from hmm_jax.client import participation as participate
from hmm_jax.config import suggestion
from hmm_jax.merging import calibrate
from hmm_jax.types import Algorithm, Federation, InputError, Local, Loss, Model

EVERYBODY = ('gossip', 'centralised')  # Here all clients train in every round.
MERGE_ROWS = 10**7  # The most that a merged model is recalibrated on.
WEIGHTS = {'size': participate.by_size, 'uniform': participate.uniform}


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
