"""Tests of FedPer and FedBN against their pseudo-code."""

from functools import cache

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax
from reference import fedper as reference
from reference import rounds, toys, two_layer

from hmm_jax import tree
from hmm_jax.algorithms.engines import private_part
from hmm_jax.client import losses, mappers
from hmm_jax.client.local import local_training
from hmm_jax.types import InputError

LR = rounds.LR
FEDERATION = rounds.FEDERATION
CLOSE = {'rtol': 1e-4, 'atol': 1e-5}
HEAD = ('kernel', 'bias')
HIDDEN = ('hidden_kernel', 'hidden_bias')


@cache
def make(network, private):
  local = local_training(losses.supervised(network()), optax.sgd(LR), batch=99, epochs=2)
  return private_part.private_part(
      network(), local, private=private, mapper=mappers.one_by_one(), participation=2)


def play(network, private, count, federation=FEDERATION):
  """Returns (the last state, the views then, the positions of each round's cohort)."""
  states, metrics = rounds.play(make(network, private), count, federation=federation)
  return (states[-1], make(network, private).views(states[-1], federation),
          rounds.positions(metrics))


def norm_twin(variables):
  """Returns a normalized softmax regression as the NumPy twin names it."""
  layer = variables['params']['trunk']['BatchNorm_0']
  named = {'scale': layer['scale'], 'shift': layer['bias'],
           **variables['batch_stats']['trunk']['BatchNorm_0']}
  return toys.twin(variables) | {
      name: np.asarray(value, np.float64) for name, value in named.items()}


class FedPerTest(parameterized.TestCase):

  def test_fedper_equals_the_pseudo_code(self):
    _, views, cohorts = play(toys.perceptron, private_part.head, 4)
    models = reference.fedper(
        toys.twin(toys.start(toys.perceptron)), toys.tables(FEDERATION), private=HEAD,
        phases=[(HEAD + HIDDEN, 2)], cohorts=cohorts, lr=LR, gradient=two_layer.gradient)
    for got, wanted in zip(tree.unstack(views['clients']), models, strict=True):
      toys.assert_close(toys.twin(got), wanted, **CLOSE)

  def test_fedbn_equals_the_pseudo_code(self):
    _, views, cohorts = play(toys.norm, private_part.batch_norm, 4)
    models = reference.fedper(
        norm_twin(toys.start(toys.norm)), toys.tables(FEDERATION),
        private=('scale', 'shift', 'mean', 'var'), phases=[(HEAD + ('scale', 'shift'), 2)],
        cohorts=cohorts, lr=LR, gradient=reference.norm_gradient,
        after=reference.move_statistics)
    for got, wanted in zip(tree.unstack(views['clients']), models, strict=True):
      toys.assert_close(norm_twin(got), wanted, **CLOSE)

  def test_fedper_shares_the_statistics(self):
    private, shared = tree.split(private_part.head(toys.norm()), toys.start(toys.norm))
    self.assertLen(jax.tree.leaves(private), 2)
    self.assertLen(jax.tree.leaves(shared['batch_stats']), 2)

  def test_batch_norm_is_what_owns_statistics(self):
    private, _ = tree.split(private_part.batch_norm(toys.cnn()), toys.start(toys.cnn))
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(private)}
    layer = "['trunk']['BatchNorm_0']"
    self.assertEqual(paths, {
        f"['params']{layer}['scale']", f"['params']{layer}['bias']",
        f"['batch_stats']{layer}['mean']", f"['batch_stats']{layer}['var']"})

  @parameterized.named_parameters(
      ('fedper', toys.perceptron, private_part.head),
      ('fedbn', toys.norm, private_part.batch_norm))
  def test_what_is_private_never_leaves_its_client(self, network, private):
    before, _, [cohort] = play(network, private, 1)
    changed = next(k for k in cohort if k != 2)  # That client has no rows.
    x = np.array(FEDERATION.examples.x)
    x[toys.rows(FEDERATION.clients)[changed]] *= -2  # One client's rows change.
    after, *_ = play(network, private, 1, FEDERATION._replace(
        examples=FEDERATION.examples._replace(x=x)))
    toys.assert_far(after.shared, before.shared)
    for k in range(5):
      own, old = (tree.take(state.private, k) for state in (after, before))
      if k == changed:
        toys.assert_far(own, old)
      else:
        toys.assert_close(own, old, atol=0)

  @parameterized.named_parameters(
      ('fedper', toys.perceptron, private_part.head), ('fedbn', toys.cnn, private_part.batch_norm))
  def test_only_the_shared_part_is_sent_and_kept_at_the_server(self, network, private):
    algorithm = make(network, private)
    stays, start = private(network()), jax.eval_shape(network().init, toys.key(0))
    own, shared = tree.split(stays, start)
    size = tree.nbytes(start) - tree.nbytes(own)
    self.assertEqual((algorithm.traffic.up, algorithm.traffic.down), (size, size))
    state = jax.eval_shape(algorithm.init, toys.key(0), FEDERATION)
    self.assertEqual(jax.tree.structure(state.shared), jax.tree.structure(shared))
    self.assertEqual(tree.nbytes(state.shared), size)
    self.assertEqual(jax.eval_shape(algorithm.views, state, FEDERATION).keys(), {'clients'})

  def test_refuses_networks_without_such_a_part(self):
    with self.assertRaisesRegex(InputError, 'all head'):
      private_part.head(toys.linear())
    with self.assertRaisesRegex(InputError, 'algorithm=fedbn'):
      private_part.batch_norm(toys.linear())


if __name__ == '__main__':
  absltest.main()
