"""Networks behind the `Model` contract, each with its record at the end of its file.

This is the registry: a network is built in when its file is named here. flax is used in this
room only.
"""

from hmm_jax.registry import Network, records

FILES = (
    'mlp',
    'cnn',
    'resnet',
    'vgg16',
    'lstm',
    'fusion',
)

NETWORKS = records(__name__, FILES, Network)
