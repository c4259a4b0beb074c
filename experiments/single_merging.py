"""When does communication matter in decentralised learning? The single global merge.

  python -m hmm_jax.main --config=experiments/single_merging.py:setting=SETTING[,scale=paper] \\
    --workdir=runs/single_merging/SETTING
"""

from ml_collections import ConfigDict

from hmm_jax import config as defaults
from hmm_jax.types import InputError

# Each round an agent pulls from a random other with probability 0.2; different initial
# models; one uniform merge at the end.
SPARSE = {'gossip.topology': 'pull', 'gossip.rate': 0.2, 'gossip.schedule': '',
          'gossip.start': 'different', 'gossip.final_merge': 'uniform'}

EVERY_ROUND = {'gossip.topology': 'complete', 'gossip.rate': 1.0}

# The runs of each setting, by what differs from a sparse one.
SETTINGS = {
    'main': lambda rounds: {
        'sparse': {},
        'silent': {'gossip.rate': 0.0},
        # As federated averaging, from one model; and from different ones.
        'every_round': EVERY_ROUND | {'gossip.start': 'same'},
        'every_round_different': EVERY_ROUND,
    },
    # All average with all in one tenth of the run.
    'windows': lambda rounds: {
        f'window_{start}': {'gossip.schedule': f'dense@{start}:{start + rounds // 10}'}
        for start in (tenth * (rounds // 10) for tenth in (0, 3, 6, 9))
    },
    'topologies': lambda rounds: {
        'pull_1': {'gossip.rate': 1.0},
        'matching': {'gossip.topology': 'matching'},
        'ring': {'gossip.topology': 'ring', 'gossip.rate': 1.0},
        'exponential': {'gossip.topology': 'exponential', 'gossip.rate': 1.0},
    },
    'finite_gossip': lambda rounds: {
        'exponential_1': {'gossip.final_merge': 'exponential:1'},
        'exponential_5': {'gossip.final_merge': 'exponential:5'},
    },
    'init': lambda rounds: {
        'sparse_same': {'gossip.start': 'same'},
        'silent_same': {'gossip.start': 'same', 'gossip.rate': 0.0},
    },
}

SCALES = {
    # For two CPU cores.
    'small': {
        'dataset': 'fashion_mnist', 'model': 'cnn', 'cnn.size': 'lenet', 'clients': 16,
        'rounds': 100, 'local.steps': 20, 'local.batch': 32},
    # The paper's own.
    'paper': {
        'dataset': 'cifar10', 'model': 'resnet', 'resnet.size': '18', 'augment': 'crop_flip',
        'clients': 32, 'rounds': 300, 'local.steps': 100, 'local.batch': 128},
}


def get_config(arguments: str = 'setting=main') -> ConfigDict:
  """Returns a setting's first run, with the others as variants of it."""
  given = {'scale': 'small', **dict(item.split('=') for item in arguments.split(','))}
  for name, choices in (('setting', SETTINGS), ('scale', SCALES)):
    if given.get(name) not in choices:
      raise InputError(f'got {name}={given.get(name)}; expected one of {", ".join(choices)}')
  config = defaults.get_config()
  config.update_from_flattened_dict({
      'algorithm': 'gossip', 'eval_every': 10 if given['setting'] == 'main' else 20, 'seeds': 3,
      'partition.kind': 'resample', 'partition.alpha': 0.1, 'partition.size': 4096,
      'partition.validation': 0.0, 'partition.test': 0.0,
      'local.optimizer': 'adamw', 'local.lr': 5e-4, 'local.weight_decay': 5e-4,
      'local.label_smoothing': 0.1, 'local.clip_value': 1.0, **SCALES[given['scale']]})
  runs = {name: SPARSE | changes
          for name, changes in SETTINGS[given['setting']](config.rounds).items()}
  (config.name, first), *others = runs.items()
  config.update_from_flattened_dict(first)
  config.variants = tuple(
      ' '.join([name, *(f'{key}={value}' for key, value in run.items())]) for name, run in others)
  return config
