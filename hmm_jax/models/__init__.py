"""Networks behind the `Model` contract, each with its record at the end of its file.

This is the registry: a network is built in if its file is listed here. flax is used in this
package only.
"""

from hmm_jax.registry import Network, records

FILES = (
    'mlp',
    'cnn',
    'resnet',
    'vgg16',
    'vit',
    'lstm',
    'gpt',
    'fusion',
)

NETWORKS = records(__name__, FILES, Network)
