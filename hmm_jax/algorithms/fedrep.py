"""FedRep: FedPer with local training in two phases, first the head, then the trunk.

  p_i <- some epochs of client i on f_i(., s), from p_i         the head, 10 in the paper
  s_i <- some epochs of client i on f_i(p_i, .), from s         the trunk, 1 or 5

BatchNorm statistics are updated with the trunk only (our choice: the paper does not specify it).

Reference: Collins, Hassani, Mokhtari, Shakkottai. Exploiting Shared Representations for
  Personalized Federated Learning. ICML 2021. arXiv:2102.07078, algorithm 1.
"""

from functools import partial

import jax
import optax

from hmm_jax import tree
from hmm_jax.algorithms.engines.private_part import head, private_part
from hmm_jax.algorithms.parts import Parts
from hmm_jax.client.local import local_training
from hmm_jax.registry import Method, Setting
from hmm_jax.types import Algorithm, Local, Loss, PyTree


def head_first(loss: Loss, optimizer: optax.GradientTransformation, *, head: PyTree, batch: int,
               head_epochs: int = 10, epochs: int = 1, steps: int = 0) -> Local:
  """Trains the head, then the trunk, each while the other is frozen.

  Args:
    loss: what to minimize.
    optimizer: optimizer of both phases, with a fresh state for each.
    head: tree of bools, True for the leaves of the head.
    batch: as in `local_training`.
    head_epochs: epochs of the head.
    epochs, steps: those of the trunk, as in `local_training`.
  """
  train_head = only(head, loss, optimizer, batch=batch, epochs=head_epochs)
  train_trunk = only(jax.tree.map(lambda yes: not yes, head), loss, optimizer, batch=batch,
                     epochs=epochs, steps=steps)

  def local(start, examples, client, extra, key):
    head_key, trunk_key = jax.random.split(key)
    halfway, extra, first = train_head(start, examples, client, extra, head_key)
    trained, extra, report = train_trunk(halfway, examples, client, extra, trunk_key)
    return trained, extra, report._replace(steps=first.steps + report.steps)

  return local


def only(part: PyTree, loss: Loss, optimizer: optax.GradientTransformation, **loop) -> Local:
  """Trains the leaves where `part` is True; `loop` holds further arguments of `local_training`."""
  # XLA removes the computation of the unused gradients.
  moves = optax.partition({True: optimizer, False: optax.set_to_zero()}, part['params'])
  train = local_training(loss, moves, **loop)

  def local(start, examples, client, extra, key):
    trained, extra, report = train(start, examples, client, extra, key)
    moved, _ = tree.split(part, trained)
    _, frozen = tree.split(part, start)
    return tree.join(moved, frozen), extra, report

  return local


def build_fedrep(parts: Parts, settings) -> Algorithm:
  make = partial(head_first, head=head(parts.model), head_epochs=settings.head_epochs)
  return private_part(parts.model, parts.training(make=make), private=head, **parts.cohort)


METHOD = Method(
    'fedrep', build_fedrep,
    {'head_epochs': Setting(10, "epochs of the head, before the trunk's local.epochs", at_least=1)},
    kind='personal', needs=('own examples', 'trunk'),
    summary='each client keeps its classifier head, which is trained before the trunk',
    paper='Collins et al. ICML 2021. arXiv:2102.07078')
