"""Federated methods: one paper, one file, each with its record at the end.

This is the registry: a method is built in when its file is named here.
"""

from hmm_jax.registry import Method, records

FILES = (
    'fedavg',
    'fedopt',
    'scaffold',
    'moon',
    'fedgen',
    'clusamp',
    'fedmr',
    'fedcross',
    'fedmerge',
    'ifca',
    'fesem',
    'fedem',
    'ditto',
    'apfl',
    'fedper',
    'fedrep',
    'fedbn',
    'pfedme',
    'feddle',
    'server_only',
    'server_as_client',
    'fedclg',
    'feddf',
    'gossip',
    'merging',
    'dmm',
    'local',
    'centralized',
)

METHODS = records(__name__, FILES, Method)
