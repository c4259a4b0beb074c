"""Fine-tuning: a global model is trained further on each client's own rows, to be its own.

  theta_i <- local steps of client i from w

Made only when views are, so a round costs what it did, and nothing of it is kept: the next
views begin at w again. BatchNorm statistics are trained further like the rest.

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
    algorithm: one with a view `global` and no view `clients`; others can't be told before
      their views are made.
    local: one client's fine-tuning, whose `extra` is ().
    mapper: how clients are mapped.
  """
  train = mappers.map_clients(local, mapper)

  def views(state, federation):
    made = algorithm.views(state, federation)
    # Views are given no key: the same state gives the same models.
    key = jax.random.fold_in(jax.random.key(0), state.round)
    tuned, _, _ = train(made['global'], federation.examples, federation.clients, (), key)
    return {**made, 'clients': tuned}

  return algorithm._replace(views=views)


SETTINGS = {
    'epochs': Setting(0, 'of each client, at evaluations only; 0: no fine-tuning', at_least=0),
    'lr': Setting(0.0, 'learning rate of sgd; 0: local.lr', at_least=0),
}
