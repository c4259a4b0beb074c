"""Federated methods: one file per paper, with its record at the end of the file.

This is the registry: the built-in methods are those of the files listed here.
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
