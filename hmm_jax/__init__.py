"""Hybrid model merging in JAX: `import hmm_jax as hmm`.

A run by its config, the parts that methods are made from, methods and merge operators; each is
imported when it is used. The contracts are in hmm_jax/types.py.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

# Where each name stands.
_HOME = {
    # runs
    'config': 'experiment.config:configure',
    'run': 'experiment.launch:run_config',
    'Run': 'experiment.saved:Run',
    'load': 'experiment.export:load',
    'export': 'experiment.export:export',
    # contracts
    'Algorithm': 'types:Algorithm',
    'Clients': 'types:Clients',
    'Dataset': 'types:Dataset',
    'Examples': 'types:Examples',
    'Federation': 'types:Federation',
    'InputError': 'types:InputError',
    'Model': 'types:Model',
    'Traffic': 'types:Traffic',
    # records
    'Method': 'registry:Method',
    'Network': 'registry:Network',
    'Operator': 'registry:Operator',
    'Partitioner': 'registry:Partitioner',
    'Setting': 'registry:Setting',
    'Source': 'registry:Source',
    # data
    'dataset': 'experiment.federation:given',
    'federation': 'experiment.federation:federation',
    'federate': 'data.federate:federate',
    'partition': 'data.partition:',
    # networks
    'classifier': 'models.classifier:classifier',
    'cnn': 'models.cnn:cnn',
    'mlp': 'models.mlp:mlp',
    'model': 'experiment.build:model',
    'preprocessed': 'models.classifier:preprocessed',
    'resnet': 'models.resnet:resnet',
    # local training and its lifting over clients
    'supervised': 'client.losses:supervised',
    'local_training': 'client.local:local_training',
    'map_clients': 'client.mappers:map_clients',
    'mix_clients': 'client.mappers:mix_clients',
    'one_by_one': 'client.mappers:one_by_one',
    'proximal': 'client.losses:proximal',
    'sampling': 'client.sampling:',
    'vectorized': 'client.mappers:vectorized',
    # methods
    'fedavg': 'algorithms.fedavg:fedavg',
    'feddle': 'algorithms.feddle:feddle',
    'fedmerge': 'algorithms.fedmerge:fedmerge',
    'fedmr': 'algorithms.fedmr:fedmr',
    'gossip': 'algorithms.gossip:gossip',
    'scaffold': 'algorithms.scaffold:scaffold',
    # merging
    'dare': 'merging.dare:dare',
    'merge': 'merge:',
    'recalibrate': 'merging.batch_norm.recalibrate:recalibrate',
    'ties': 'merging.ties:ties',
    'tree': 'tree:',
    'uniform': 'merging.average:uniform',
    'weight_matching': 'merging.alignment.weight_matching:weight_matching',
}

__all__ = ['__version__', *_HOME]


def __getattr__(name: str) -> Any:
  if name not in _HOME:
    raise AttributeError(f'module hmm_jax has no attribute {name}')
  module, _, attribute = _HOME[name].partition(':')
  found = importlib.import_module(f'hmm_jax.{module}')
  value = getattr(found, attribute) if attribute else found
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted(__all__)
