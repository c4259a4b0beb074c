"""Every setting of a run, with its default. There are no hidden options.

Change one with `--config.key=value`; write a file with a `get_config` like this
one and pass `--config=FILE` for a study of your own.
"""

from collections.abc import Mapping
import difflib
import math
from typing import Any

from ml_collections import ConfigDict

from hmm_jax.types import InputError


def get_config() -> ConfigDict:
  """Returns the defaults: FedAvg on scikit-learn's digits, in 20 skewed clients."""
  config = ConfigDict()

  # What is trained.
  config.name = ''  # of the run in tables and of its folder; '': the algorithm's
  config.algorithm = 'fedavg'  # fedavg fedprox fedopt scaffold gossip local centralised
  config.dataset = 'digits'  # digits, synthetic, npz:PATH, or a prepared TFDS set's name
  config.data_dir = ''  # of TFDS; '' is its default, ~/tensorflow_datasets
  config.model = 'mlp'  # mlp cnn resnet vgg16
  config.normalise = 'standard'  # standard none
  config.augment = 'none'  # none crop_flip
  config.compute_dtype = 'float32'  # float32 bfloat16; parameters stay float32

  # How long, and how often.
  config.clients = 20  # 0: as many as the data has natural clients
  config.participation = 10  # clients a round; 0: all (gossip, centralised: always all)
  config.rounds = 100
  config.eval_every = 10  # rounds between evaluations and checkpoints
  config.eval_batch = 512
  config.seed = 0  # the first of the training seeds
  config.seeds = 3  # how many
  config.seed_map = 'in_turn'  # in_turn together
  config.stop = ConfigDict({
      'patience': 0,  # evaluations without a better validation accuracy; 0: never stop
  })
  config.keep_best = False  # also keep the states of the best validation accuracy
  config.keep = 2  # checkpoints
  config.tensorboard = False  # event files in workdir/events
  config.references = ''  # also run, for comparison: any of iid,linear,local
  # Also run, each with settings of its own: 'NAME key=value key=value'.
  config.variants = ()

  # Where it runs. Results do not depend on it, up to float rounding.
  config.mapper = 'auto'  # auto map vmap sharded
  config.chunk = 0  # clients vectorised at a time by vmap; 0: all

  # Who holds which data.
  config.partition = ConfigDict({
      'kind': 'dirichlet',  # iid dirichlet shards quantity natural domain resample
      'alpha': 0.1,  # concentration: small is skewed (dirichlet, quantity, resample)
      'shards': 2,  # classes a client (shards)
      'size': 0,  # rows a client (resample); 0: rows / clients
      'min_size': 10,  # rows a client, at least (dirichlet, quantity)
      'seed': 0,
      'validation': 0.1,  # share of each client's rows held out
      'test': 0.1,
  })

  # What a client does in a round.
  config.local = ConfigDict({
      'epochs': 5,
      'steps': 0,  # above 0: so many steps instead of epochs
      'batch': 20,
      'optimizer': 'sgd',  # sgd adamw
      'lr': 0.05,
      'momentum': 0.0,
      'weight_decay': 0.0,
      'clip': 0.0,  # global gradient norm; 0: no clipping
      'clip_value': 0.0,  # of each entry of the gradient; 0: no clipping
      'label_smoothing': 0.0,
      'prox': 0.0,  # pull towards the round's start; 0: none
  })

  # Each algorithm's own.
  config.fedavg = ConfigDict({'weights': 'size'})  # size uniform
  config.fedprox = ConfigDict({'mu': 0.01, 'weights': 'size'})
  config.fedopt = ConfigDict({
      'optimizer': 'adam',  # of optax; it gets those of the settings below that it takes
      'lr': 0.01,
      'momentum': 0.9,
      'b1': 0.9,
      'b2': 0.99,
      'eps': 1e-3,
      'weights': 'size',
  })
  config.scaffold = ConfigDict({'server_lr': 1.0})
  config.gossip = ConfigDict({
      # pull matching; ring torus hypercube star complete erdos_renyi regular edges:PATH;
      # exponential one_peer_exponential base
      'topology': 'pull',
      'weights': 'metropolis',  # metropolis laplacian uniform, on an undirected graph
      'degree': 4,  # of a regular graph; k of base, the Base-(k+1) graph
      'edge_probability': 0.3,  # erdos_renyi
      'graph_seed': 0,  # erdos_renyi regular
      # How likely an agent (pull matching), or everybody at once, talks in a round.
      'rate': 0.2,
      # Pieces over that rate: constant:R linear:A:B cosine:A:B dense, each with @FROM:TO,
      # such as 'constant:1@150:' (a switch at round 150) or 'dense@80:90,dense@180:190'.
      'schedule': '',
      'start': 'different',  # different same: the agents' initial models
      'statistics': 'mixed',  # mixed kept: BatchNorm's, while gossiping
      'final_merge': 'uniform',  # none uniform TOPOLOGY:ROUNDS
      'merged_statistics': 'recalibrated',  # recalibrated averaged
      'merge_data': 'train',  # train validation: all agents' rows, to recalibrate on
      'merge_batches': 32,  # of so many random rows each as local.batch
  })

  # Each model's own.
  config.mlp = ConfigDict({'hidden': (128,)})  # () is a linear model
  config.cnn = ConfigDict({'size': 'lenet'})  # lenet pfllib small pfl
  config.resnet = ConfigDict({'size': '9-narrow', 'norm': 'batch'})  # 9-narrow 18 20
  config.vgg16 = ConfigDict({'norm': 'batch'})  # batch group layer none

  config.synthetic = ConfigDict({'rows': 2000, 'classes': 10, 'shape': (8, 8, 1), 'seed': 0})
  return config.lock()


CHOICES = {
    'algorithm': (
        'fedavg', 'fedprox', 'fedopt', 'scaffold', 'gossip', 'local', 'centralised'),
    'model': ('mlp', 'cnn', 'resnet', 'vgg16'),
    'normalise': ('standard', 'none'),
    'augment': ('none', 'crop_flip'),
    'compute_dtype': ('float32', 'bfloat16'),
    'seed_map': ('in_turn', 'together'),
    'mapper': ('auto', 'map', 'vmap', 'sharded'),
    'partition.kind': (
        'iid', 'dirichlet', 'shards', 'quantity', 'natural', 'domain', 'resample'),
    'local.optimizer': ('sgd', 'adamw'),
    'fedavg.weights': ('size', 'uniform'),
    'fedprox.weights': ('size', 'uniform'),
    'fedopt.weights': ('size', 'uniform'),
    'gossip.weights': ('metropolis', 'laplacian', 'uniform'),
    'gossip.start': ('different', 'same'),
    'gossip.statistics': ('mixed', 'kept'),
    'gossip.merged_statistics': ('recalibrated', 'averaged'),
    'gossip.merge_data': ('train', 'validation'),
}

AT_LEAST_ONE = ('rounds', 'eval_every', 'eval_batch', 'seeds', 'keep', 'local.batch',
                'partition.min_size', 'gossip.degree', 'gossip.merge_batches', 'synthetic.rows',
                'synthetic.classes')
NOT_NEGATIVE = (
    'clients', 'participation', 'chunk', 'seed', 'stop.patience',
    'partition.size', 'partition.seed', 'synthetic.seed',
    'local.epochs', 'local.steps', 'local.momentum', 'local.weight_decay', 'local.clip',
    'local.clip_value', 'local.label_smoothing', 'local.prox', 'fedprox.mu', 'fedopt.momentum',
    'fedopt.eps')
POSITIVE = ('local.lr', 'fedopt.lr', 'scaffold.server_lr', 'partition.alpha',
            'gossip.edge_probability')


def complete(config: ConfigDict) -> ConfigDict:
  """Returns the defaults with a config's values, which may name only some of the keys.

  Raises:
    InputError: a key that does not exist, or a value of another type.
  """
  return updated(get_config(), flat(config), 'the config file')


def updated(config: ConfigDict, changes: Mapping[str, Any], source: str) -> ConfigDict:
  """Returns a copy with other values: {'local.lr': 0.1, ...}, out of what `source` names.

  Raises:
    InputError: a key that does not exist, or a value of another type.
  """
  full, keys = config.copy_and_resolve_references(), tuple(flat(config))
  for key, value in changes.items():
    if key not in keys:
      raise InputError(f'got {key} in {source}; expected a key of hmm_jax/config.py'
                       + suggestion(key, keys))
    try:
      full.update_from_flattened_dict({key: value})
    except TypeError as error:
      raise InputError(f'got {key}={value!r}; expected a value like {flat(full)[key]!r}') from error
  return full


def check(config: ConfigDict):
  """Checks every value that a table above speaks of.

  Raises:
    InputError: a name is unknown, or a number is not finite or out of range.
  """
  values = flat(config)
  for key, value in values.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise InputError(f'got {key}={value}; expected a finite number')
  for key, names in CHOICES.items():
    if values[key] not in names:
      raise InputError(f'got {key}={values[key]}; expected one of {", ".join(names)}'
                       + suggestion(values[key], names))
  if values['seed'] + values['seeds'] > 2**31:
    raise InputError(f'got seed={values["seed"]}; expected seeds below 2**31')
  for keys, good, wanted in (
      (AT_LEAST_ONE, lambda v: v >= 1, 'at least 1'),
      (NOT_NEGATIVE, lambda v: v >= 0, '0 or more'),
      (POSITIVE, lambda v: v > 0, 'a number above 0')):
    for key in keys:
      if not good(values[key]):
        raise InputError(f'got {key}={values[key]}; expected {wanted}')


def flat(config: Mapping) -> dict[str, Any]:
  """Returns {'local.lr': 0.05, ...}."""
  values = {}
  for name, value in config.items():
    if isinstance(value, Mapping | ConfigDict):
      values |= {f'{name}.{key}': v for key, v in flat(value).items()}
    else:
      values[name] = value
  return values


def suggestion(name: str, names: tuple[str, ...]) -> str:
  """Returns '; did you mean X?' for the nearest name, or nothing."""
  near = difflib.get_close_matches(name, names, n=1)
  return f'; did you mean {near[0]}?' if near else ''
