"""Networks behind the `Model` contract, each with its record at the end of its file.

This is the registry: a network is built in if its file is listed here. flax is used in this
package only.
"""

from hmm_jax.models.own.factory import is_own, own_network
from hmm_jax.registry import Network, Stand, records

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
OWN = Stand('flax module, its class, or a function that returns one', is_own, own_network)
