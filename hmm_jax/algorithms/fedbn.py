"""FedBN: each client keeps its BatchNorm layers, everything else is averaged.

  p_i, s_i <- local steps of client i from (p_i, s)         p scales, biases and statistics of BN
  s        <- sum_i n_i s_i / sum_i n_i                     over the m participants

All clients have the same initial model, p_i included (our choice).

Reference: Li, Jiang, Zhang, Kamp, Dou. FedBN: Federated Learning on Non-IID Features via Local
  Batch Normalization. ICLR 2021. arXiv:2102.07623.
"""

from hmm_jax.algorithms.engines.private_part import batch_norm, private_part
from hmm_jax.algorithms.parts import Parts
from hmm_jax.registry import Method
from hmm_jax.types import Algorithm


def build_fedbn(parts: Parts, settings) -> Algorithm:
  del settings
  return private_part(parts.model, parts.training(), private=batch_norm, **parts.cohort)


METHOD = Method(
    'fedbn', build_fedbn, kind='personal', needs=('own examples', 'BatchNorm'),
    summary='each client keeps its BatchNorm layers',
    paper='Li et al. ICLR 2021. arXiv:2102.07623')
