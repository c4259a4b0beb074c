"""Fine-tuning: personalizes the global model by further training on each client's own examples.

  theta_i <- local steps of client i from w

Done at evaluations only, so the cost of a round is unchanged, and nothing is kept: the next
evaluation fine-tunes w again. BatchNorm statistics are updated like the rest.

Reference: Yu, Bagdasaryan, Shmatikov. Salvaging Federated Learning by Local Adaptation.
  2020. arXiv:2002.04758.
"""

import jax

from hmm_jax.client import mappers
from hmm_jax.registry import Setting
from hmm_jax.types import Algorithm, Local, Mapper


def fine_tuned(algorithm: Algorithm, local: Local, *, mapper: Mapper) -> Algorithm:
  """Adds the view `clients` to an algorithm: its global model, fine-tuned by every client.

  Memory is O(K) models while views are evaluated.

  Args:
    algorithm: one with a view `global` and no view `clients` (not checked here: see
      `parts.one_global_model`).
    local: one client's fine-tuning, whose `extra` is ().
    mapper: how clients are mapped.
  """
  train = mappers.map_clients(local, mapper)

  def views(state, federation):
    made = algorithm.views(state, federation)
    # Views get no key, so that a state always gives the same models.
    key = jax.random.fold_in(jax.random.key(0), state.round)
    tuned, _, _ = train(made['global'], federation.examples, federation.clients, (), key)
    return {**made, 'clients': tuned}

  return algorithm._replace(views=views)


SETTINGS = {
    'epochs': Setting(
        0, 'epochs per client, at evaluations only; 0: no fine-tuning', at_least=0),
    'lr': Setting(0.0, 'learning rate of SGD; 0: local.lr', at_least=0),
}
