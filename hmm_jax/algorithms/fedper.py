"""FedPer: each client keeps its classifier head, the trunk is averaged.

  p_i, s_i <- local steps of client i from (p_i, s)         p the head, s the trunk
  s        <- sum_i n_i s_i / sum_i n_i                     over the m participants

BatchNorm statistics are shared like the rest of the trunk. Our choices, to be comparable to
FedAvg: all clients have the same initial model, p_i included, and weights are by number of
examples.

Reference: Arivazhagan, Aggarwal, Singh, Choudhary. Federated Learning with Personalization
  Layers. 2019. arXiv:1912.00818.
"""

from hmm_jax.algorithms.engines.private_part import head, private_part
from hmm_jax.algorithms.parts import Parts
from hmm_jax.registry import Method
from hmm_jax.types import Algorithm


def build_fedper(parts: Parts, settings) -> Algorithm:
  del settings
  return private_part(parts.model, parts.training(), private=head, **parts.cohort)


METHOD = Method(
    'fedper', build_fedper, kind='personal', needs=('own examples', 'trunk'),
    summary='each client keeps its classifier head',
    paper='Arivazhagan et al. 2019. arXiv:1912.00818')
