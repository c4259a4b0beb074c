"""Tests of FedRep against its pseudo-code, and of its two phases."""

from functools import cache
import inspect

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax
from reference import fedper as reference
from reference import rounds, toys, two_layer

from hmm_jax import tree
from hmm_jax.algorithms import fedrep
from hmm_jax.algorithms.engines.private_part import head, private_part
from hmm_jax.client import losses, mappers

LR = rounds.LR
FEDERATION = rounds.FEDERATION
CLIENT = toys.one(FEDERATION, 3)
HEAD = ('kernel', 'bias')
HIDDEN = ('hidden_kernel', 'hidden_bias')
# Weight decay moves what has no gradient, unless it is frozen.
DECAYING = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(LR, momentum=0.9))


@cache
def phase(of_head):
  """Returns the compiled training of one part: two epochs of the head, five steps of the trunk."""
  part = jax.tree.map(lambda is_head: is_head == of_head, head(toys.norm()))
  loop = {'epochs': 2} if of_head else {'steps': 5}
  return part, toys.jit(fedrep.only(
      part, losses.supervised(toys.norm()), DECAYING, batch=1, **loop))


def train(work, start, key):
  return work(start, FEDERATION.examples, CLIENT, (), key)


class FedRepTest(parameterized.TestCase):

  def test_equals_the_pseudo_code(self):
    local = fedrep.head_first(
        losses.supervised(toys.perceptron()), optax.sgd(LR), head=head(toys.perceptron()),
        batch=99, head_epochs=3, epochs=2)
    algorithm = private_part(
        toys.perceptron(), local, private=head, mapper=mappers.one_by_one(), participation=2)
    states, metrics = rounds.play(algorithm, 4)
    models = reference.fedper(
        toys.twin(toys.start(toys.perceptron)), toys.tables(FEDERATION), private=HEAD,
        phases=[(HEAD, 3), (HIDDEN, 2)], cohorts=rounds.positions(metrics), lr=LR,
        gradient=two_layer.gradient)
    views = algorithm.views(states[-1], FEDERATION)
    for got, wanted in zip(tree.unstack(views['clients']), models, strict=True):
      toys.assert_close(toys.twin(got), wanted, rtol=1e-4, atol=1e-5)

  @parameterized.named_parameters(('head', True), ('trunk', False))
  def test_a_phase_leaves_the_other_part_untouched(self, of_head):
    part, work = phase(of_head)
    start = toys.start(toys.norm)
    trained, _, _ = train(work, start, toys.key(0))
    for moves, old, new in zip(*map(jax.tree.leaves, (part, start, trained)), strict=True):
      self.assertEqual((np.asarray(old) != np.asarray(new)).any(), moves)

  def test_the_frozen_part_counts_in_no_norm(self):
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    phase = fedrep.only(head(toys.perceptron()), losses.supervised(toys.perceptron()), clipped,
                        batch=99, epochs=1)
    start = toys.start(toys.perceptron)
    trained, _, _ = train(toys.jit(phase), start, toys.key(0))
    moved = tree.sub(trained, start)
    self.assertAlmostEqual(float(tree.dot(moved, moved))**0.5, 1e-3, places=6)

  def test_ten_epochs_of_the_head_then_one_of_the_trunk(self):
    loop = inspect.signature(fedrep.head_first).parameters
    self.assertEqual((loop['head_epochs'].default, loop['epochs'].default), (10, 1))

  def test_the_head_comes_first_and_phases_shuffle_anew(self):
    both = fedrep.head_first(
        losses.supervised(toys.norm()), DECAYING, head=head(toys.norm()), batch=1,
        head_epochs=2, steps=5)
    trained, _, report = train(toys.jit(both), toys.start(toys.norm), toys.key(0))
    model = toys.start(toys.norm)
    for of_head, key in zip((True, False), jax.random.split(toys.key(0)), strict=True):
      model, _, _ = train(phase(of_head)[1], model, key)
    toys.assert_close(trained, model)
    # Steps are of the trunk.
    self.assertEqual(report.steps, 2 * 8 + 5)


if __name__ == '__main__':
  absltest.main()
