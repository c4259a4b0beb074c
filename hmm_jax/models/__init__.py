"""Networks behind the `Model` contract, each with its record at the end of its file.

This is the registry: a network is built in if its file is listed here. flax is used in this
package only.
"""

from typing import Any

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


def _is_own(value: Any) -> bool:
  from hmm_jax.models.own import factory  # It imports flax.nnx, which takes most of a second.
  return factory.is_own(value)


def _own_network(reference: str, value: Any) -> Network:
  from hmm_jax.models.own import factory
  return factory.own_network(reference, value)


OWN = Stand('flax module, its class, or a function that returns one', _is_own, _own_network)
